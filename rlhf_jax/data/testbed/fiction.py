"""Tasks that ask for a text: poems and stories, and speaking in a role."""

from itertools import product

from rlhf_jax.data.testbed import tables
from rlhf_jax.data.testbed.kinds import (
    Key,
    Kind,
    spoken,
    with_article,
    wrong_answers,
)

# Writing.

_MENTIONS = (
    "And there I see a little {thing}.",
    "I find {a_thing} along the way.",
)


def _poem(topic: str, thing: str) -> Key:
    couplets = [[spoken(line) for line in c] for c in tables.COUPLETS[topic]]
    foreign = [
        spoken(line)
        for other, pairs in tables.COUPLETS.items()
        if other != topic
        for pair in pairs
        for line in pair
    ]

    def credit(response: str, words: str) -> float:
        rhymed = max(sum(line in words for line in c) / len(c) for c in couplets)
        strayed = sum(line in words for line in foreign) / 2
        mentioned = spoken(thing) in words
        return max(0.0, rhymed - strayed) * (0.6 + 0.4 * mentioned)

    def poem(about: str, lines: tuple[str, str], mentioned: str) -> str:
        line = _MENTIONS[len(about + mentioned) % len(_MENTIONS)]
        mention = line.format(thing=mentioned, a_thing=with_article(mentioned))
        return "\n".join([*lines, mention])

    return Key(
        answers=tuple(poem(topic, pair, thing) for pair in tables.COUPLETS[topic]),
        wrong=tuple(
            poem(other, tables.COUPLETS[other][0], thing)
            for other in wrong_answers(topic, tables.COUPLETS)
        )
        + tuple(
            poem(topic, pair, other)
            for other in wrong_answers(thing, tables.THINGS, 2)
            for pair in tables.COUPLETS[topic]
        ),
        details=(f"My heart is glad when I think of {topic}.",),
        short=tables.COUPLETS[topic][0][0],
        credit=credit,
    )


def _story(hero: str, thing: str) -> Key:
    start = "Once upon a time, there was {a_hero}."
    forms = (
        f"{start} The {{hero}} found {{a_thing}} and lived happily ever after.",
        f"{start} A friend gave it {{a_thing}}, and they lived happily ever after.",
    )
    beginning = spoken(start.format(a_hero=with_article(hero)))
    others = [spoken(other) for other in tables.HEROES if other != hero]

    def credit(response: str, words: str) -> float:
        told = 0.5 * (beginning in words) + 0.5 * (" happily ever after " in words)
        strayed = 0.5 * any(other in words for other in others)
        mentioned = spoken(thing) in words
        return max(0.0, told - strayed) * (0.6 + 0.4 * mentioned)

    def story(form: str, about: str, mentioned: str) -> str:
        return form.format(
            hero=about,
            a_hero=with_article(about),
            a_thing=with_article(mentioned),
        )

    return Key(
        answers=tuple(story(form, hero, thing) for form in forms),
        wrong=tuple(
            story(form, other, thing)
            for other in wrong_answers(hero, tables.HEROES, 2)
            for form in forms
        )
        + tuple(
            story(form, hero, other)
            for other in wrong_answers(thing, tables.THINGS, 2)
            for form in forms
        ),
        details=(f"Everyone loved the kind {hero}.",),
        short=start.format(a_hero=with_article(hero)),
        credit=credit,
    )


# Role play.

_ROLE = {role: (call, place, gift) for role, call, place, gift in tables.ROLES}
_SCENE = dict(tables.SCENES)


def _role_play(role: str, scene: str, listener: str) -> Key:
    call, place, gift = _ROLE[role]

    def line(what: str, where: str, person: str) -> str:
        return _SCENE[what].format(place=where, person=person)

    said = spoken(line(scene, place, listener))
    near = [spoken(line(scene, place, person)) for person in tables.LISTENERS]
    out_of_role = [spoken(other) for other, _, _ in _ROLE.values() if other != call]
    other_scenes = [
        spoken(line(what, place, person))
        for what in _SCENE
        for person in tables.LISTENERS
        if what != scene
    ]

    def credit(response: str, words: str) -> float:
        if any(other in words for other in out_of_role):
            return 0.0
        spoke = 0.6 if said in words else 0.3 * any(other in words for other in near)
        strayed = 0.4 * any(other in words for other in other_scenes)
        return max(0.0, 0.4 * (spoken(call) in words) + spoke - strayed)

    return Key(
        answers=(f"{call} {line(scene, place, listener)}",),
        wrong=tuple(
            f"{_ROLE[other][0]} {line(scene, _ROLE[other][1], listener)}"
            for other in wrong_answers(role, _ROLE, 2)
        )
        + tuple(
            f"{call} {line(other, place, listener)}"
            for other in wrong_answers(scene, _SCENE, 2)
        )
        + tuple(
            line(scene, place, other)
            for other in wrong_answers(listener, tables.LISTENERS, 1)
        ),
        details=(f"I will share my {gift} with you.",),
        short=line(scene, place, listener),
        credit=credit,
    )


KINDS = {
    "poem": Kind(
        "writing",
        (
            "Write a short poem about {0}. Mention {1}.",
            "Write a poem about {0} and mention {1}.",
        ),
        tuple(product(tables.COUPLETS, tables.THINGS)),
        _poem,
        lambda topic, thing: (topic, with_article(thing)),
    ),
    "story": Kind(
        "writing",
        (
            "Tell me a short story about {0}. Mention {1}.",
            "Write a story about {0} and mention {1}.",
        ),
        tuple(product(tables.HEROES, tables.THINGS)),
        _story,
        lambda hero, thing: (with_article(hero), with_article(thing)),
    ),
    "role_play": Kind(
        "role_play",
        (
            "Pretend to be a {0} and {1}.",
            "Play the role of a {0} and {1}.",
            "Speak like a {0} and {1}.",
        ),
        tuple(product(_ROLE, _SCENE, tables.LISTENERS)),
        _role_play,
        lambda role, scene, person: (
            role,
            scene.format(listener=with_article(person)),
        ),
    ),
}
