"""Reward 1 for a response whose text is the reference, exactly or normalised."""

import re
import string
import unicodedata

from rlhf_jax.data.records import Prompt, Response
from rlhf_jax.rewards.rows import by_row, reference_of

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_ASCII = frozenset(string.punctuation)


def normalised(text: str) -> str:
    """Return a text in lower case, without punctuation, English articles and repeated
    blanks, as SQuAD compares answers (arXiv 1606.05250), with characters in their
    compatible form (NFKC)."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = "".join(
        " " if c in _ASCII or unicodedata.category(c).startswith("P") else c
        for c in text
    )
    return " ".join(_ARTICLES.sub(" ", text).split())


def _exact(prompt: Prompt, response: Response) -> float:
    reference = reference_of(prompt, "exact_match")
    return float(response.text.strip() == reference.strip())


def _normalised(prompt: Prompt, response: Response) -> float:
    reference = normalised(reference_of(prompt, "normalised_match"))
    return float(normalised(response.text) == reference)


exact_match = by_row(_exact)
normalised_match = by_row(_normalised)
