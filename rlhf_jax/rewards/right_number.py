"""Reward 1 for a response whose answer is the reference's number.

The number of a text is the first in its last \\boxed{...}; else the first after its
last "answer is", "answer:" or "####"; else its last number. Numbers are compared as
exact fractions: 1,000 = 1000 = 1e3, 1/2 = 0.5 = 50 %, 1 1/2 = 1.5.
"""

import re
import unicodedata
from fractions import Fraction

from rlhf_jax.data.records import Prompt, Response
from rlhf_jax.rewards.rows import by_row, reference_of
from rlhf_jax.rewards.stated import stated_answer

MOST_DIGITS = 400  # longer numbers are no numbers, so that no text costs much time

_DECIMAL = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:e[-+]?\d{1,3}(?!\d))?|\.\d+"
_NUMBER = re.compile(
    rf"(?P<in_hundred>百分之\s*)?(?:(?<![\w)\]}}])(?P<sign>[-+])\s?)?[$€£¥]?"
    rf"(?:(?P<whole>\d+)[ ](?=\d+\s*/\s*\d))?"
    rf"(?P<top>{_DECIMAL})(?:\s*/\s*(?P<bottom>{_DECIMAL}))?"
    r"(?P<percent>\s*(?:\\?%|per\s?cent\b))?",
    re.IGNORECASE,
)
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_BLANKS = "\u00a0\u2009\u202f"  # that separate thousands
_SEPARATORS = re.compile(rf"(?<=\d)(?:\{{,\}}|\\,|[{_BLANKS}])(?=\d{{3}}(?!\d))")
_MINUS = dict.fromkeys(map(ord, "−﹣－‒–"), "-")


def number_of(text: str) -> Fraction | None:
    """Return the number that a text answers with, None without one."""
    said, is_marked = stated_answer(text)
    places = list(_NUMBER.finditer(_plain(said)))
    if not places:
        return None
    is_boxed = (is_marked and "\\boxed" in text) or "\\fbox" in text
    return _value(places[0] if is_marked and not is_boxed else places[-1])


def _right(prompt: Prompt, response: Response) -> float:
    expected = number_of(reference_of(prompt, "right_number"))
    if expected is None:
        raise ValueError(
            f"prompt {prompt.id!r} has the reference {prompt.reference[:60]!r}, which "
            "holds no number for right_number"
        )
    return float(number_of(response.text) == expected)


right_number = by_row(_right)


def _plain(text: str) -> str:
    """Write digits, signs and fractions of any script in ASCII."""
    text = "".join(map(_plain_character, text)).translate(_MINUS)
    text = _FRACTION.sub(r" \1/\2 ", text)
    return _SEPARATORS.sub(",", text)


def _plain_character(character: str) -> str:
    if character.isascii() or character in _BLANKS:
        return character
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    compatible = unicodedata.normalize("NFKC", character)
    if "\u2044" in compatible and len(compatible) > 1:  # a fraction in one character
        return " " + compatible.replace("\u2044", "/")
    # A superscript is no digit of the number before it.
    is_number = unicodedata.category(character) == "No"
    return character if is_number or len(compatible) > 1 else compatible


def _value(place: re.Match) -> Fraction | None:
    """Return the value of a number's match, None for one that is no number."""
    if len(place[0]) > MOST_DIGITS:
        return None
    value = Fraction(place["top"].replace(",", ""))
    if place["bottom"]:
        bottom = Fraction(place["bottom"].replace(",", ""))
        if not bottom:
            return None
        value /= bottom
    value += Fraction(place["whole"] or 0)
    if place["in_hundred"] or place["percent"]:
        value /= 100
    return -value if place["sign"] == "-" else value
