"""Reward 1 for a response that chooses the reference's letter.

The letter of a text is, the first of these that there is: in its last \\boxed{...};
after its last "answer is" or "answer:"; at its beginning, as "B", "B." or "(B)"; the
last in brackets; the last that stands alone, but for the words "A" and "I".
"""

import re
import unicodedata

from rlhf_jax.data.records import Prompt, Response
from rlhf_jax.rewards.rows import by_row, reference_of
from rlhf_jax.rewards.stated import stated_answer

_MARKED = re.compile(
    r"^\W*(?:(?i:option|choice)|选项)?\W*(?:([A-Z])(?![A-Za-z0-9'])|([a-z])\W*$)"
)
_BEGINS = re.compile(r"^\W*([A-Z])(?:[.):,：、。．）]|\s*$)")
_IN_BRACKETS = re.compile(r"[(\[]([A-Z])[)\]]")
_ALONE = re.compile(r"(?<![A-Za-z0-9'])([B-HJ-Z])(?![A-Za-z0-9'])")


def choice_of(text: str) -> str:
    """Return the letter that a text chooses, in upper case; "" without one."""
    text = unicodedata.normalize("NFKC", text)
    said, is_marked = stated_answer(text)
    if is_marked and (letter := _MARKED.search(said)):
        return (letter[1] or letter[2]).upper()
    if letter := _BEGINS.search(text):
        return letter[1]
    for pattern in (_IN_BRACKETS, _ALONE):
        if letters := pattern.findall(text):
            return letters[-1]
    return ""


def _right(prompt: Prompt, response: Response) -> float:
    reference = reference_of(prompt, "multiple_choice")
    letter = reference.strip()
    expected = choice_of(letter.upper() if len(letter) == 1 else letter)
    if not expected:
        raise ValueError(
            f"prompt {prompt.id!r} has the reference {reference[:60]!r}, which names "
            "no letter for multiple_choice"
        )
    return float(choice_of(response.text) == expected)


multiple_choice = by_row(_right)
