"""Tasks whose question combines parts, so that evaluation can ask for other
combinations; facts of the world tell right answers from wrong ones."""

import dataclasses
import re
from collections.abc import Sequence
from itertools import permutations, product

from rlhf_jax.data.testbed.kinds import (
    Fillings,
    Key,
    Kind,
    Subject,
    by,
    by_pair,
    capitalised,
    from_table,
    rebound,
    says,
)
from rlhf_jax.data.testbed.world import World, partner

# Fundamental language ability.


def _past(world: World, verb: str, one: str, other: str) -> Key:
    forms = (f"{one} {{0}} {other}.", f"yesterday {one} {{0}} {other}.")
    right, wrong = world.pasts[verb], world.pasts[partner(verb, world.verbs)]
    key = rebound(forms, (right,), (wrong,))
    others = [past for past in world.pasts.values() if past != right]
    is_right = says([f"{one} {right} {other}"], others)
    return dataclasses.replace(key, is_right=is_right)


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


def _story(world: World, one: str, other: str) -> Key:
    forms = (f"once upon a time the {one} left the {{}} and met the {other}.",)
    mistaken = world.homes[partner(one, world.animals)]
    return from_table(world.homes[one], mistaken, world.homes.values(), forms)


def _role_play(world: World, role: str, giver: str, taker: str) -> Key:
    """Make the key of a role's speech: wrong are the call of another role, and the
    exchange of the two people."""

    def line(who: str, one: str, other: str) -> str:
        return f"{world.calls[who]}. Here is a gift from {one} to you, dear {other}."

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
        tuple(capitalised(form.format(number)) for form in forms)
        for number in (result, wrong)
    )
    return Key(answers, others, str(result), is_right)


def _gets(world: World, name: str, goods: str, a: str, b: str) -> Key:
    forms = (f"{name} has {{}} {goods} now.", f"now there are {{}} {goods}.")
    return _number((a, b), int(a) + int(b), int(a) - int(b), forms)


def _gives(world: World, name: str, goods: str, a: str, b: str) -> Key:
    forms = (f"{name} has {{}} {goods} now.", f"now there are {{}} {goods}.")
    return _number((a, b), int(a) - int(b), int(a) + int(b), forms)


def _stories_of_sums(world: World) -> list[tuple[str, ...]]:
    return [
        (name, goods, *pair)
        for name, goods, pair in product(world.people, world.goods, world.sums)
    ]


def _by_goods(world: World, name: str, goods: str, a: str, b: str) -> Subject:
    return goods, tuple(world.goods)


# Logic.


def _compare(world: World, more: str, one: str, other: str, ask: str) -> Key:
    """Make the key of "Who is taller, ONE or OTHER?", or "shorter": what is known about
    some pairs of people says it about all, but must be put together."""
    places = world.places(more)
    named = sorted((one, other), key=places.index, reverse=ask != more)
    first, last = ([f"{who} is the {ask} one", f"{who} is {ask}"] for who in named)
    said = says(first, last)
    names = "|".join([*world.people, *world.orders, *world.orders.values()])
    told = re.compile(rf"\b(?:{names})\b")

    def is_right(response: str, words: str) -> bool:
        bare = [word for word in told.findall(response) if word != ask]
        return said(response, words) or bare == named[:1]

    return Key((f"{first[0]}.",), (f"{last[0]}.",), named[0], is_right)


def _two(words: str, field: str) -> Fillings:
    """Return the fillings (word, one, other) of a word with two others of a list."""

    def fillings(world: World) -> list[tuple[str, ...]]:
        pairs = permutations(getattr(world, field), 2)
        return [(w, *p) for w, p in product(getattr(world, words), list(pairs))]

    return fillings


KINDS = {
    "past": Kind(
        "language",
        (
            "Put this in the past: {1} {0}s {2}.",
            "Say it in the past: {1} {0}s {2}.",
            "Turn into the past: {1} {0}s {2}.",
            "Past form, please: {1} {0}s {2}.",
        ),
        _two("verbs", "people"),
        _past,
        by_pair("verbs"),
        composed=True,
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
        by("verbs"),
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
        by("verbs"),
        composed=True,
        shown=lambda world, verb, one, other: (world.in_luma(one, verb, other),),
    ),
    "story": Kind(
        "writing",
        (
            "Write a story: the {0} meets the {1}.",
            "Tell a story: the {0} meets the {1}.",
            "Write a tale: the {0} meets the {1}.",
            "Make up a story: the {0} meets the {1}.",
        ),
        lambda world: list(permutations(world.animals, 2)),
        _story,
        by_pair("animals"),
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
        by_pair("calls"),
        composed=True,
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
            "Who is {3}, {1} or {2}?",
            "Name the {3} one: {1} or {2}.",
            "Which one is {3}, {1} or {2}?",
            "Say who is {3}, {1} or {2}.",
        ),
        lambda world: [
            (more, *pair, ask)
            for more, less in world.orders.items()
            for pair in permutations(world.people, 2)
            for ask in (more, less)
        ],
        _compare,
        by("orders"),
        composed=True,
    ),
}
