"""A kind of task and the key to one task: the parts that every task is made of."""

import re
from collections.abc import Callable
from dataclasses import dataclass

# (response as written, response as spoken) -> share of the task done, 0 to 1
Credit = Callable[[str, str], float]


@dataclass(frozen=True)
class Key:
    """All there is to say to one task."""

    answers: tuple[str, ...]  # right and complete
    wrong: tuple[str, ...]  # of the same form, and wrong
    details: tuple[str, ...]  # a sentence that helps beyond the answer
    short: str  # the bare answer
    credit: Credit


@dataclass(frozen=True)
class Kind:
    intent: str
    wordings: tuple[str, ...]  # {0}, {1}, ... are the filling's fields
    fillings: tuple[tuple[str, ...], ...]
    key: Callable[..., Key]
    # What a wording shows of a filling, where that is not the filling itself.
    shown: Callable[..., tuple[str, ...]] = lambda *filling: filling


WORD = re.compile(r"[A-Za-z0-9]+(?:[-'][A-Za-z0-9]+)*")


def spoken(text: str) -> str:
    """Lower-case words between single spaces, so that " a b " is found in it."""
    return " " + " ".join(WORD.findall(text)).lower() + " "


def with_article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def capitalised(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def one(table) -> tuple[tuple[str, ...], ...]:
    return tuple((entry,) for entry in table)


# How right answers are recognised.


def says(answer: str, rivals) -> Credit:
    """The answer is said and no other answer that the question could have had."""
    wanted = spoken(answer)
    others = [spoken(rival) for rival in rivals if rival != answer]

    def credit(response: str, words: str) -> float:
        return float(wanted in words and not any(other in words for other in others))

    return credit


def only_token(token: str, pattern: str) -> Credit:
    """The response's tokens of this pattern are exactly the wanted one."""
    compiled = re.compile(pattern)

    def credit(response: str, words: str) -> float:
        return float(set(compiled.findall(response)) == {token})

    return credit


def wrong_answers(answer: str, table, count: int = 4) -> list[str]:
    """Some wrong answers from the table, those that follow the right one."""
    values = list(dict.fromkeys(table))
    start = values.index(answer)
    steps = range(1, min(count, len(values) - 1) + 1)
    return [values[(start + step) % len(values)] for step in steps]


def from_table(
    answer: str, table, forms: tuple[str, ...], details: tuple[str, ...]
) -> Key:
    """The key of a question whose answer is one entry of a table; forms have {}."""
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
