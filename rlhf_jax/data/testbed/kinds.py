"""Kinds of task, the key to a task, and the recognition of right answers."""

import re
from collections.abc import Callable
from dataclasses import dataclass

# A function (response as written, response as spoken) -> share of the task done, 0 to
# 1.
Credit = Callable[[str, str], float]


@dataclass(frozen=True)
class Key:
    """Right and wrong answers to one task, and their recognition."""

    answers: tuple[str, ...]  # right and complete answers
    wrong: tuple[str, ...]  # wrong answers of the same form
    details: tuple[str, ...]  # sentences that help beyond the answer
    short: str  # the bare answer
    credit: Credit


@dataclass(frozen=True)
class Kind:
    """A kind of task: its intent, wordings, fillings and answer key."""

    intent: str
    wordings: tuple[str, ...]  # {0}, {1}, ... are the filling's fields
    fillings: tuple[tuple[str, ...], ...]
    key: Callable[..., Key]
    # The fields that a wording shows, as a function of the filling.
    shown: Callable[..., tuple[str, ...]] = lambda *filling: filling


WORD = re.compile(r"[A-Za-z0-9]+(?:[-'][A-Za-z0-9]+)*")


def spoken(text: str) -> str:
    """Return lower-case words between single spaces, for searches such as " a b "."""
    return " " + " ".join(WORD.findall(text)).lower() + " "


def with_article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def capitalised(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def one(table) -> tuple[tuple[str, ...], ...]:
    return tuple((entry,) for entry in table)


# Recognition of right answers.


def says(answer: str, rivals) -> Credit:
    """Credit 1 if the answer is said, and none of the question's other answers is."""
    wanted = spoken(answer)
    others = [spoken(rival) for rival in rivals if rival != answer]

    def credit(response: str, words: str) -> float:
        return float(wanted in words and not any(other in words for other in others))

    return credit


def only_token(token: str, pattern: str) -> Credit:
    """Credit 1 if `token` is the only match of `pattern` in the response."""
    compiled = re.compile(pattern)

    def credit(response: str, words: str) -> float:
        return float(set(compiled.findall(response)) == {token})

    return credit


def wrong_answers(answer: str, table, count: int = 4) -> list[str]:
    """Return up to `count` wrong answers: the table's entries after the right one."""
    values = list(dict.fromkeys(table))
    start = values.index(answer)
    steps = range(1, min(count, len(values) - 1) + 1)
    return [values[(start + step) % len(values)] for step in steps]


def from_table(
    answer: str, table, forms: tuple[str, ...], details: tuple[str, ...]
) -> Key:
    """Make the key of a question whose answer is an entry of a table; forms have {}."""
    return Key(
        answers=tuple(capitalised(form.format(answer)) for form in forms),
        wrong=tuple(
            capitalised(form.format(other))
            for other in wrong_answers(answer, table)
            for form in forms
        ),
        details=details,
        short=answer,
        credit=says(answer, table),
    )
