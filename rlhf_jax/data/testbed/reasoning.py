"""Tasks that need reasoning: small sums, and the first or last of three in an order."""

import re
from itertools import permutations, product

from rlhf_jax.data.testbed import tables
from rlhf_jax.data.testbed.kinds import (
    Key,
    Kind,
)

# Mathematics.

_NUMBER = re.compile(r"\d+")


def _number(given: tuple[str, str], result: int, forms, details) -> Key:
    """Make the key of a sum: an answer is right if it says the result, and no numbers
    besides the result and the given ones."""
    allowed = {*given, str(result)}

    def credit(response: str, words: str) -> float:
        numbers = set(_NUMBER.findall(response))
        return float(str(result) in numbers and numbers <= allowed)

    mistakes = [n for n in (result + 1, result - 1, result + 2, result - 2) if n > 0]
    return Key(
        answers=tuple(form.format(result) for form in forms),
        wrong=tuple(form.format(n) for n in mistakes for form in forms),
        details=tuple(details),
        short=str(result),
        credit=credit,
    )


def _plus(a: str, b: str) -> Key:
    result = int(a) + int(b)
    forms = (f"{a} plus {b} is {{}}.", "The answer is {}.")
    return _number((a, b), result, forms, [f"To check, {result} minus {b} is {a}."])


def _minus(a: str, b: str) -> Key:
    result = int(a) - int(b)
    forms = (f"{a} minus {b} is {{}}.", "The answer is {}.")
    return _number((a, b), result, forms, [f"To check, {result} plus {b} is {a}."])


def _gets(name: str, goods: str, a: str, b: str) -> Key:
    result = int(a) + int(b)
    forms = (f"{name} has {{}} {goods} now.",)
    return _number(
        (a, b), result, forms, [f"This is because {a} plus {b} is {result}."]
    )


def _gives(name: str, goods: str, a: str, b: str) -> Key:
    result = int(a) - int(b)
    forms = (f"{name} has {{}} {goods} left.",)
    return _number(
        (a, b), result, forms, [f"This is because {a} minus {b} is {result}."]
    )


_SUMS = tuple(
    (str(a), str(b))
    for a, b in product(range(2, 7), repeat=2)
    if a + b <= tables.LARGEST_SUM
)
# Differences with a - b = b are left out: repeating the question would answer them.
_DIFFERENCES = tuple(
    (str(a), str(b))
    for a, b in product(range(5, 11), range(2, 5))
    if a - b >= 2 and a != 2 * b
)


# Logic.


def _order(kind: str, sorted_names: tuple[str, str, str], most: bool) -> Key:
    more, top, bottom = next(row for row in tables.ORDERS if row[0] == kind)
    superlative = top if most else bottom
    first, second, third = sorted_names
    answer = first if most else third
    names = "|".join(tables.NAMES)
    claim = re.compile(
        rf"\b({names}) is the {superlative}"
        rf"|{superlative}(?: of the three)? is ({names})"
    )
    relation = re.compile(rf"\b({names}) is {more} than ({names})")
    true = {(first, second), (second, third), (first, third)}

    def credit(response: str, words: str) -> float:
        claimed = {a or b for a, b in claim.findall(response)}
        if not claimed:  # a bare name is an answer too
            claimed = set(re.findall(names, response))
        honest = set(relation.findall(response)) <= true
        return float(claimed == {answer}) * (1.0 if honest else 0.5)

    forms = (f"{{}} is the {superlative}.", f"The {superlative} of the three is {{}}.")
    return Key(
        answers=tuple(form.format(answer) for form in forms),
        wrong=tuple(
            form.format(name)
            for name in sorted_names
            if name != answer
            for form in forms
        ),
        details=(
            f"{first} is {more} than {second}, and {second} is {more} than {third}.",
        ),
        short=answer,
        credit=credit,
    )


def _compare(more: str, ask: str, *names: str) -> Key:
    return _order(more, names, ask in {row[1] for row in tables.ORDERS})


def _compare_shown(more: str, ask: str, *names: str) -> tuple[str, ...]:
    first, second, third = names
    return (
        f"{first} is {more} than {second}.",
        f"{second} is {more} than {third}.",
        ask,
    )


KINDS = {
    "plus": Kind(
        "mathematics",
        ("What is {0} plus {1}?", "Add {0} and {1}.", "How much is {0} plus {1}?"),
        _SUMS,
        _plus,
    ),
    "minus": Kind(
        "mathematics",
        (
            "What is {0} minus {1}?",
            "Subtract {1} from {0}.",
            "How much is {0} minus {1}?",
        ),
        _DIFFERENCES,
        _minus,
    ),
    "gets": Kind(
        "mathematics",
        ("{0} has {2} {1} and gets {3} more. How many {1} does {0} have now?",),
        tuple((n, g, *s) for n, g, s in product(tables.NAMES, tables.GOODS, _SUMS)),
        _gets,
    ),
    "gives": Kind(
        "mathematics",
        ("{0} has {2} {1} and gives away {3}. How many {1} are left?",),
        tuple(
            (n, g, *d) for n, g, d in product(tables.NAMES, tables.GOODS, _DIFFERENCES)
        ),
        _gives,
    ),
    "compare": Kind(
        "logic",
        (
            "{0} {1} Who is the {2}?",
            "{0} {1} Tell me who is the {2}.",
        ),
        tuple(
            (more, ask, *names)
            for more, *asks in tables.ORDERS
            for ask in asks
            for names in permutations(tables.NAMES, 3)
        ),
        _compare,
        _compare_shown,
    ),
}
