"""Filters of prompts: rules, duplicates, quality and intents.

The filters follow ChatGLM-RLHF (arXiv 2404.00934, section 1). Every function returns a
reason for each prompt, "" if the prompt stays; the first reason that applies counts.
"""

import dataclasses
import unicodedata
import zlib
from collections.abc import Sequence

import numpy as np
import py3langid
from datasketch import MinHash, MinHashLSH

from rlhf_jax.data.cleaning.prompt_quality import CRITERIA
from rlhf_jax.data.records import Prompt

SHINGLE = 5  # characters of a shingle; Chinese has no spaces between words
NUM_HASHES = 128
# The language of short texts and of code is uncertain: texts of fewer than MIN_BYTES
# bytes pass, and so do texts whose wanted languages have a probability of MIN_SHARE.
MIN_BYTES = 24
HAN = (("\u3400", "\u4dbf"), ("\u4e00", "\u9fff"))
KANA = (("\u3040", "\u30ff"),)
HANGUL = (("\u1100", "\u11ff"), ("\uac00", "\ud7af"))
MIN_SHARE = 0.05


@dataclasses.dataclass(frozen=True)
class PromptRules:
    """The limits on a prompt's last message, and on its similarity to other prompts."""

    min_characters: int
    max_characters: int
    languages: tuple[str, ...]  # ISO 639-1 codes; () allows any language
    # Largest Jaccard similarity of character 5-grams to an earlier prompt; 1 disables.
    max_similarity: float


def by_rule(prompts: Sequence[Prompt], rules: PromptRules) -> list[str]:
    """Return "too short", "too long", "wrong language", "duplicate", "near-duplicate"
    or "" for each prompt. The first of equal prompts stays."""
    reasons = [_by_itself(prompt, rules) for prompt in prompts]
    rest = [i for i, reason in enumerate(reasons) if not reason]
    texts = [normalised(prompts[i]) for i in rest]
    seen = set()
    for i, text in zip(rest, texts, strict=True):
        if text in seen:
            reasons[i] = "duplicate"
        seen.add(text)
    if rules.max_similarity < 1:
        pairs = zip(rest, texts, strict=True)
        unique = [(i, text) for i, text in pairs if not reasons[i]]
        near = near_duplicates([text for _, text in unique], rules.max_similarity)
        for i, _ in (unique[j] for j in np.flatnonzero(near)):
            reasons[i] = "near-duplicate"
    return reasons


def by_quality(scores: np.ndarray, minimum: float) -> list[str]:
    """Return "no verdict", "low intention" (or whichever criterion is lowest) or "" for
    each prompt.

    Args:
        scores: [prompts, 3] from a scorer, NaN for prompts without a verdict.
        minimum: the smallest accepted score of every criterion.
    """
    reasons = []
    for row in scores:
        if np.isnan(row).any():
            reasons.append("no verdict")
        else:
            worst = int(row.argmin())
            reasons.append(f"low {CRITERIA[worst]}" if row[worst] < minimum else "")
    return reasons


def by_intent(intents: Sequence[str], maximum: int, seed: int) -> list[str]:
    """Return "enough of its intent" for random prompts of intents with more than
    `maximum` prompts, and "" for all others."""
    reasons = [""] * len(intents)
    places = {}
    for i, intent in enumerate(intents):
        places.setdefault(intent, []).append(i)
    rng = np.random.default_rng(seed)
    for intent in sorted(places):
        for i in rng.permutation(places[intent])[maximum:].tolist():
            reasons[i] = "enough of its intent"
    return reasons


def near_duplicates(texts: Sequence[str], max_similarity: float) -> np.ndarray:
    """Find the texts that are similar to an earlier one that stays: bool [texts].

    MinHash proposes candidates without comparing all pairs; the exact Jaccard
    similarity decides, so that no text below the limit is dropped.
    """
    # The weights prefer superfluous candidates to missed duplicates.
    index = MinHashLSH(max_similarity, num_perm=NUM_HASHES, weights=(0.2, 0.8))
    near = np.zeros(len(texts), bool)
    for i, text in enumerate(texts):
        parts = _shingles(text)
        sketch = MinHash(num_perm=NUM_HASHES, hashfunc=zlib.crc32)
        sketch.update_batch([part.encode() for part in parts])
        near[i] = any(
            len(parts & other) > max_similarity * len(parts | other)
            for other in (_shingles(texts[j]) for j in index.query(sketch))
        )
        if not near[i]:
            index.insert(i, sketch)
    return near


def normalised(prompt: Prompt) -> str:
    """Return the conversation without differences in case, width and spaces."""
    text = "\n".join(f"{m['role']}: {m['content']}" for m in prompt.messages)
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def language_share(text: str, languages: Sequence[str]) -> float:
    """Return the probability that a text is in one of `languages`.

    Chinese, Japanese and Korean are recognised by script, since py3langid takes Chinese
    for Japanese; py3langid recognises the other languages (97 in all, the model is part
    of the package).
    """
    letters = [c for c in text if c.isalpha()]
    han, kana, hangul = (
        sum(low <= c <= high for c in letters for low, high in ranges)
        for ranges in (HAN, KANA, HANGUL)
    )
    if han + kana + hangul > 0.2 * len(letters):
        guess = "zh" if han >= 4 * (kana + hangul) else "ja" if kana > hangul else "ko"
        return float(guess in languages)
    ranked = py3langid.rank(text)
    logits = np.array([score for _, score in ranked], float)
    weights = np.exp(logits - logits.max())
    wanted = np.array([language in languages for language, _ in ranked])
    return float(weights[wanted].sum() / weights.sum())


def _by_itself(prompt: Prompt, rules: PromptRules) -> str:
    text = prompt.messages[-1]["content"].strip()
    if len(text) < rules.min_characters:
        return "too short"
    if len(text) > rules.max_characters:
        return "too long"
    if not rules.languages or len(text.encode()) < MIN_BYTES:
        return ""
    wrong = language_share(text, rules.languages) < MIN_SHARE
    return "wrong language" if wrong else ""


def _shingles(text: str) -> set[str]:
    return {text[i : i + SHINGLE] for i in range(max(1, len(text) - SHINGLE + 1))}
