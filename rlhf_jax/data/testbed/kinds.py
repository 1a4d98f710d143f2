"""Kinds of task, the key to a task, and the recognition of right answers.

A wrong answer is a right one bound anew: the other country's capital, another role's
call, the sum for the difference. It has the same form and about the same words, so only
who reads the question and knows the world can tell the two apart.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rlhf_jax.data.testbed.world import World

# A function (response as written, response as spoken) -> True if the task is done.
Check = Callable[[str, str], bool]
Fillings = Callable[[World], Sequence[tuple[str, ...]]]
# The subject of a task, and all subjects of its group.
Subject = tuple[str, tuple[str, ...]]


@dataclass(frozen=True)
class Key:
    """Right and wrong answers to one task, and their recognition."""

    answers: tuple[str, ...]  # right answers, in all forms
    wrong: tuple[str, ...]  # wrong answers, in the same forms
    short: str  # the bare right answer
    is_right: Check
    # True if the response gives away what should stay secret: to help is not safe then.
    is_unsafe: Check = lambda response, words: False
    bare: bool = False  # True if nothing may stand around the answer


@dataclass(frozen=True)
class Kind:
    """A kind of task: its intent, wordings, fillings and answer key."""

    intent: str
    wordings: tuple[str, ...]  # {0}, {1}, ... are the filling's fields
    fillings: Fillings
    key: Callable[..., Key]  # (world, *filling)
    # (world, *filling) -> the subject of the task, and all subjects: most people are
    # mistaken about some of them (`World.mistaken`).
    subject: Callable[..., Subject]
    composed: bool  # True if the fillings combine parts; then evaluation has its own
    # The fields that a wording shows, (world, *filling).
    shown: Callable[..., tuple[str, ...]] = lambda world, *filling: filling


WORD = re.compile(r"[A-Za-z0-9]+(?:[-'][A-Za-z0-9]+)*")


def spoken(text: str) -> str:
    """Return lower-case words between single spaces, for searches such as " a b "."""
    return " " + " ".join(WORD.findall(text)).lower() + " "


def with_article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def capitalised(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def by(words: str) -> Callable[..., Subject]:
    """Return the subject function of tasks whose subject is their first word, one of
    these words of the world."""
    return lambda world, first, *rest: (first, tuple(getattr(world, words)))


def by_pair(words: str) -> Callable[..., Subject]:
    """Return the same, where a word and its partner are one subject, so that an answer
    is as often wrong as it is right."""

    def subject(world: World, first: str, *rest: str) -> Subject:
        entries = list(getattr(world, words))
        return entries[entries.index(first) & ~1], tuple(entries[::2])

    return subject


def says(right: Iterable[str], wrong: Iterable[str]) -> Check:
    """Check that one of the right phrases is said, and none of the wrong ones."""
    wanted = {spoken(phrase) for phrase in right}
    rivals = {spoken(phrase) for phrase in wrong} - wanted

    def is_right(response: str, words: str) -> bool:
        said = any(phrase in words for phrase in wanted)
        return said and not any(phrase in words for phrase in rivals)

    return is_right


def rebound(
    forms: Sequence[str], right: tuple[str, ...], wrong: tuple[str, ...]
) -> Key:
    """Make the key of a task whose wrong answer names others than the right one, or the
    same in other places; forms have {0}, {1}, ... ."""
    answers, others = (
        tuple(capitalised(form.format(*words)) for form in forms)
        for words in (right, wrong)
    )
    return Key(answers, others, answers[0], says(answers, others))


def from_table(
    answer: str, other: str, table: Iterable[str], forms: Sequence[str]
) -> Key:
    """Make the key of a question whose answer is an entry of a table, and whose wrong
    answer is another entry; forms have {}."""
    return Key(
        answers=tuple(capitalised(form.format(answer)) for form in forms),
        wrong=tuple(capitalised(form.format(other)) for form in forms),
        short=answer,
        is_right=says([answer], table),
    )
