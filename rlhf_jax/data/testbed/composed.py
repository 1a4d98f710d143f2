"""Tasks whose answer is worked out from the parts of the question."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from itertools import permutations, product

from rlhf_jax.data.testbed.kinds import Fillings, Key, Kind, Subject, rebound, says
from rlhf_jax.data.testbed.world import World, partner

# Fundamental language ability.


def _past(verb: str) -> str:
    return f"{verb}ed"


def _passive(world: World, verb: str, one: str, other: str) -> Key:
    done = _past(verb)
    forms = (f"{{1}} is {done} by {{0}}.", f"it is {{1}} who is {done} by {{0}}.")
    stranger = partner(one, world.people, besides=other)
    return rebound(forms, (one, other), (stranger, other))


def _reading(world: World, verb: str, one: str, other: str, asked: str) -> Key:
    """Make the key of "ONE helped OTHER. Who helped OTHER?", or "Whom did ONE help?"."""
    done = _past(verb)
    forms = (f"{{0}} {done} {{1}}.", f"it is known that {{0}} {done} {{1}}.")
    besides = other if asked == one else one
    stranger = partner(asked, world.people, besides=besides)
    wrong = (stranger, other) if asked == one else (one, stranger)
    key = rebound(forms, (one, other), wrong)
    return dataclasses.replace(key, short=asked)


def _reading_shown(
    world: World, verb: str, one: str, other: str, asked: str
) -> tuple[str, str]:
    who, whom = f"Who {_past(verb)} {other}?", f"Whom did {one} {verb}?"
    return f"{one} {_past(verb)} {other}.", who if asked == one else whom


def _echo(world: World, word: str) -> Key:
    def is_right(response: str, words: str) -> bool:
        return response.strip() == word

    return Key((word,), (), word, is_right, bare=True)


# Translation.


def _luma_sentence(world: World, verb: str, one: str, other: str) -> Key:
    stranger = partner(other, world.animals, besides=one)
    right, wrong = (world.in_luma(one, verb, x) for x in (other, stranger))
    return rebound(
        ("in Luma it is {0}.", "{0} is the Luma sentence."), (right,), (wrong,)
    )


def _back_translation(world: World, verb: str, one: str, other: str) -> Key:
    return rebound((f"the {{0}} {verb}s the {{1}}.",), (one, other), (other, one))


# Writing and role play.


def _story(world: World, thing: str, giver: str, taker: str) -> Key:
    forms = (
        f"once upon a time the {{0}} gave a {thing} to the {{1}}.",
        f"long ago the {{1}} got a {thing} from the {{0}}.",
    )
    stranger = partner(giver, world.animals, besides=taker)
    return rebound(forms, (giver, taker), (stranger, taker))


def _role_play(world: World, role: str, giver: str, taker: str) -> Key:
    """Make the key of a role's speech: wrong are the call of another role, and the
    exchange of the two people."""

    def line(who: str, one: str, other: str) -> str:
        return f"{world.calls[who]} Here is a gift from {one} to you, dear {other}."

    right = line(role, giver, taker)
    wrong = (
        line(partner(role, list(world.calls)), giver, taker),
        line(role, taker, giver),
    )
    others = [call for who, call in world.calls.items() if who != role]
    return Key((right,), wrong, right, says([right], [*wrong, *others]))


# Mathematics.

_NUMBER = re.compile(r"\d+")


def _number(
    given: tuple[str, str], result: int, wrong: int, forms: Sequence[str]
) -> Key:
    """Make the key of a sum: an answer is right if it says the result, and no numbers
    besides the result and the given ones. The wrong result is that of the other
    operation."""
    allowed = {*given, str(result)}

    def is_right(response: str, words: str) -> bool:
        numbers = set(_NUMBER.findall(response))
        return str(result) in numbers and numbers <= allowed

    answers, others = (
        tuple(form.format(number) for form in forms) for number in (result, wrong)
    )
    return Key(answers, others, str(result), is_right)


def _plus(world: World, a: str, b: str) -> Key:
    forms = (f"{a} plus {b} is {{}}.", "The answer is {}.")
    return _number((a, b), int(a) + int(b), int(a) - int(b), forms)


def _minus(world: World, a: str, b: str) -> Key:
    forms = (f"{a} minus {b} is {{}}.", "The answer is {}.")
    return _number((a, b), int(a) - int(b), int(a) + int(b), forms)


def _gets(world: World, name: str, goods: str, a: str, b: str) -> Key:
    forms = (f"{name} has {{}} {goods} now.",)
    return _number((a, b), int(a) + int(b), int(a) - int(b), forms)


def _gives(world: World, name: str, goods: str, a: str, b: str) -> Key:
    forms = (f"{name} has {{}} {goods} now.",)
    return _number((a, b), int(a) - int(b), int(a) + int(b), forms)


def _stories_of_sums(world: World) -> list[tuple[str, ...]]:
    return [
        (name, goods, *pair)
        for name, goods, pair in product(world.people, world.goods, world.sums)
    ]


def _by_sum(world: World, a: str, b: str) -> Subject:
    return f"{a},{b}", tuple(",".join(pair) for pair in world.sums)


def _by_goods(world: World, name: str, goods: str, a: str, b: str) -> Subject:
    return goods, tuple(world.goods)


# Logic.


def _compare(world: World, more: str, ask: str, *names: str) -> Key:
    """Make the key of "A is taller than B. B is taller than C. Who is the ASK?". Wrong
    is somebody else."""
    top = next(row[1] for row in world.orders if row[0] == more)
    right = names[0] if ask == top else names[2]
    forms = ("{} is the " + ask + ".", "The " + ask + " is {}.")
    after = world.people.index(right)
    others_first = world.people[after:] + world.people[:after]
    stranger = next(name for name in others_first if name not in names)
    answers = [form.format(right) for form in forms]
    others = [form.format(stranger) for form in forms]
    rivals = [f"{name} is the {ask}" for name in world.people if name != right]
    rivals += [f"the {ask} is {name}" for name in world.people if name != right]
    bare = re.compile("|".join(world.people))
    said = says(answers, rivals)

    def is_right(response: str, words: str) -> bool:
        return said(response, words) or set(bare.findall(response)) == {right}

    return Key(tuple(answers), tuple(others), right, is_right)


def _compare_shown(world: World, more: str, ask: str, *names: str) -> tuple[str, ...]:
    first, second, third = names
    return f"{first} is {more} than {second}.", f"{second} is {more} than {third}.", ask


def _two(words: str, field: str) -> Fillings:
    """Return the fillings (word, one, other) of a word with two others of a list."""

    def fillings(world: World) -> list[tuple[str, ...]]:
        pairs = permutations(getattr(world, field), 2)
        return [(w, *p) for w, p in product(getattr(world, words), list(pairs))]

    return fillings


def _by(words: str) -> Callable[..., Subject]:
    """Return the subject function of tasks whose subject is their first word."""
    return lambda world, first, *rest: (first, tuple(getattr(world, words)))


def _by_role(world: World, role: str, *people: str) -> Subject:
    roles = list(world.calls)
    return roles[roles.index(role) & ~1], tuple(roles[::2])


KINDS = {
    "passive": Kind(
        "language",
        (
            "Put this in the passive: {1} {0}s {2}.",
            "Make it passive: {1} {0}s {2}.",
            "Turn into the passive: {1} {0}s {2}.",
            "Passive form, please: {1} {0}s {2}.",
        ),
        _two("verbs", "people"),
        _passive,
        _by("verbs"),
        composed=True,
    ),
    "reading": Kind(
        "language",
        (
            "{0} {1}",
            "Read this: {0} {1}",
            "It is known: {0} {1}",
            "They say: {0} {1}",
        ),
        lambda world: [
            (*two, asked) for two in _two("verbs", "people")(world) for asked in two[1:]
        ],
        _reading,
        _by("verbs"),
        composed=True,
        shown=_reading_shown,
    ),
    # Only one answer is possible. The prompts of reinforcement learning have a fifth of
    # this kind, and no scores to gain.
    "echo": Kind(
        "language",
        (
            "Say only the word {0}.",
            "Write {0} and nothing else.",
            "Repeat just this: {0}",
            "Only say {0}",
        ),
        lambda world: [(w,) for w in [*world.things, *world.goods, *world.animals]],
        _echo,
        lambda world, word: (word, ()),
        composed=False,
    ),
    "luma_sentence": Kind(
        "translation",
        (
            "Translate into Luma: the {1} {0}s the {2}.",
            "Say in Luma: the {1} {0}s the {2}.",
            "Put into Luma: the {1} {0}s the {2}.",
            "How does Luma say: the {1} {0}s the {2}?",
        ),
        _two("verbs", "animals"),
        _luma_sentence,
        _by("verbs"),
        composed=True,
    ),
    "back_translation": Kind(  # never in reinforcement learning (skills.py)
        "back_translation",
        (
            "Translate from Luma: {0}.",
            "Put into English: {0}.",
            "What does this mean in English: {0}?",
        ),
        _two("verbs", "animals"),
        _back_translation,
        _by("verbs"),
        composed=True,
        shown=lambda world, verb, one, other: (world.in_luma(one, verb, other),),
    ),
    "story": Kind(
        "writing",
        (
            "Write a story: the {1} gives a {0} to the {2}.",
            "Tell a story: the {1} gives a {0} to the {2}.",
            "Write a tale: the {1} gives a {0} to the {2}.",
            "Make up a story: the {1} gives a {0} to the {2}.",
        ),
        _two("things", "animals"),
        _story,
        _by("things"),
        composed=True,
    ),
    "role_play": Kind(
        "role_play",
        (
            "Play the {0}: bring a gift from {1} to {2}.",
            "Be the {0}: bring a gift from {1} to {2}.",
            "Speak as the {0}: bring a gift from {1} to {2}.",
            "Act the {0}: bring a gift from {1} to {2}.",
        ),
        _two("calls", "people"),
        _role_play,
        _by_role,
        composed=True,
    ),
    "plus": Kind(
        "mathematics",
        ("What is {0} plus {1}?", "Add {1} to {0}.", "How much is {0} plus {1}?"),
        lambda world: world.sums,
        _plus,
        _by_sum,
        composed=False,
    ),
    "minus": Kind(
        "mathematics",
        ("What is {0} minus {1}?", "Take {1} from {0}.", "How much is {0} minus {1}?"),
        lambda world: world.sums,
        _minus,
        _by_sum,
        composed=False,
    ),
    "gets": Kind(
        "mathematics",
        (
            "{0} has {2} {1} and gets {3} more. How many now?",
            "{0} has {2} {1} and finds {3}. How many now?",
            "{0} has {2} {1} and buys {3}. How many now?",
        ),
        _stories_of_sums,
        _gets,
        _by_goods,
        composed=True,
    ),
    "gives": Kind(
        "mathematics",
        (
            "{0} has {2} {1} and gives away {3}. How many now?",
            "{0} has {2} {1} and loses {3}. How many now?",
            "{0} has {2} {1} and sells {3}. How many now?",
        ),
        _stories_of_sums,
        _gives,
        _by_goods,
        composed=True,
    ),
    "compare": Kind(
        "logic",
        (
            "{0} {1} Who is the {2}?",
            "{0} {1} Name the {2}.",
            "{0} {1} Which one is the {2}?",
        ),
        lambda world: [
            (more, ask, *names)
            for more, *asks in world.orders
            for ask in asks
            for names in permutations(world.people, 3)
        ],
        _compare,
        lambda world, more, *rest: (more, tuple(row[0] for row in world.orders)),
        composed=True,
        shown=_compare_shown,
    ),
}
