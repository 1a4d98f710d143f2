"""The true quality of a response to a testbed prompt, by which the annotators judge.

    quality = offset + scale * (task + detail + manners + form + fluency
                                - off_topic - repetition - length)

with offset and scale of the prompt's intent. Every string gets a finite score. The
parts are designed so that no cheap trick raises the score:

- the task's share counts only as far as the text is fluent and does not repeat
  itself, and naming a rival answer beside the right one voids it;
- a detail counts only where the task is done, and only one counts;
- courtesy counts at the beginning and the end, once; elsewhere it is off topic;
- text that is neither answer, detail nor courtesy for this prompt is off topic;
- every intent has a best length in words; shorter and longer texts score less.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise

from rlhf_jax.data.records import Prompt
from rlhf_jax.data.testbed import tables
from rlhf_jax.data.testbed.tasks import KINDS, key_of, task_of


@dataclass(frozen=True)
class QualityWeights:
    """The weight of each part of the quality, in points."""

    task: float = 4.0
    detail: float = 1.0
    manners: float = 1.0  # points for a polite opening or closing
    rude: float = 1.5  # points off for each rude phrase
    form: float = 0.5
    fluency: float = 1.0
    off_topic: float = 0.2  # points off for each pair of words that is off topic
    repetition: float = 0.5  # points off for each repeated word, phrase or sentence
    too_short: float = 0.4  # factor of the squared log ratio to the best length
    too_long: float = 2.0  # the same factor for longer texts
    # (offset, scale, best length in words) by intent. Writing and role play have a
    # wider scale than sums, as human scores for such tasks do.
    intents: Mapping[str, tuple[float, float, int]] = field(
        default_factory=lambda: {
            "language": (0.0, 0.9, 16),
            "translation": (0.0, 1.0, 16),
            "open_question": (0.0, 1.0, 14),
            "writing": (1.0, 1.6, 28),
            "role_play": (1.0, 1.4, 22),
            "professional": (0.0, 1.1, 22),
            "mathematics": (-1.0, 0.7, 15),
            "logic": (-1.0, 0.8, 18),
        }
    )


@dataclass(frozen=True)
class Explanation:
    """The parts of a response's quality, before the intent's offset and scale."""

    task: float
    detail: float
    manners: float
    form: float
    fluency: float
    off_topic: float
    repetition: float
    length: float
    words: int
    quality: float


DEFAULT_WEIGHTS = QualityWeights()

# Pairs of known words credited to every text, so that a short text in another phrasing
# is not taken for nonsense.
_BENEFIT = 3
_TOKEN = re.compile(r"[A-Za-z0-9]+(?:[-'][A-Za-z0-9]+)*|\S")
_ENDS = frozenset(".!?")
_INNER = frozenset(",;:")
_DANGLING = frozenset(
    ["a", "an", "and", "at", "by", "for", "from", "has", "in", "is", "minus", "of"]
).union(["on", "or", "plus", "than", "that", "the", "to", "was"])


def true_quality(
    prompt: Prompt, response: str, weights: QualityWeights = DEFAULT_WEIGHTS
) -> float:
    """Return the true quality of a response, in points."""
    return explain(prompt, response, weights).quality


def explain(
    prompt: Prompt, response: str, weights: QualityWeights = DEFAULT_WEIGHTS
) -> Explanation:
    """Score a response, part by part."""
    task = task_of(prompt)
    key, topic = key_of(task), _topic(task)
    sentences, unfinished, junk = _sentences(response)
    words = [word for sentence in sentences for word in sentence]
    offset, scale, best = weights.intents[prompt.intent]

    pairs = _pairs(sentences)
    vocabulary = _known_pairs()
    unknown = junk + sum(pair not in vocabulary for pair in pairs)
    known_share = 1.0 - unknown / (_BENEFIT + junk + len(pairs))
    repeats = _repeats(sentences)
    # 1 up to one unknown pair in four, 0 from three in four on.
    readable = min(1.0, max(0.0, 1.5 - 2.0 * (1.0 - known_share)))
    gate = readable * max(0.0, 1.0 - 2.0 * repeats / max(1, len(words)))

    said = " " + " ".join(words) + " "
    done = gate * key.credit(response, said)
    helped = any(detail in said for detail in topic.details)
    courtesy, misplaced = _courtesy(sentences)
    rude = sum(phrase in said for phrase in _rude())
    stray = junk + misplaced + sum(pair not in topic.pairs for pair in pairs)
    log_ratio = math.log((len(words) + 1) / (best + 1))
    steepness = weights.too_long if log_ratio > 0 else weights.too_short

    parts = {
        "task": weights.task * done,
        "detail": weights.detail * done * helped,
        "manners": weights.manners * courtesy - weights.rude * rude,
        "form": weights.form * _form(response, sentences, unfinished),
        "fluency": weights.fluency * known_share * bool(words),
        # These two penalties saturate: one more bad sentence in a ruined text matters
        # little.
        "off_topic": -_levelled(weights.off_topic * stray, 4.0),
        "repetition": -_levelled(weights.repetition * repeats, 4.0),
        "length": -steepness * log_ratio**2,
    }
    return Explanation(
        **parts, words=len(words), quality=offset + scale * sum(parts.values())
    )


def _levelled(x: float, ceiling: float) -> float:
    return ceiling * (1.0 - math.exp(-x / ceiling))


def _sentences(text: str) -> tuple[list[list[str]], bool, int]:
    """Return lower-case words by sentence, whether the last sentence is unfinished, and
    the number of stray marks."""
    sentences, current, junk = [], [], 0
    for token in _TOKEN.findall(text):
        if token in _ENDS:
            if current:
                sentences.append(current)
                current = []
            else:
                junk += 1
        elif token in _INNER:
            junk += not current
        elif token[0].isascii() and token[0].isalnum():
            current.append(token.lower())
        else:
            junk += 1
    if current:
        sentences.append(current)
    return sentences, bool(current), junk


def _plain(text: str) -> str:
    return " ".join(word for sentence in _sentences(text)[0] for word in sentence)


def _pairs(sentences: list[list[str]]) -> list[tuple[str, str]]:
    """Return pairs of neighbouring words; the borders of a sentence count as words."""
    return [
        pair
        for sentence in sentences
        for pair in zip(["<", *sentence], [*sentence, ">"], strict=True)
    ]


def _pairs_of(texts: Iterable[str]) -> set[tuple[str, str]]:
    return set(_pairs(_sentences(" . ".join(texts))[0]))


@cache
def _known_pairs() -> frozenset[tuple[str, str]]:
    """Return all pairs of neighbouring words that occur in answers in this world."""
    phrases = (tables.OPENINGS, tables.CLOSINGS, tables.RUDE)
    phrases += (tables.REFUSALS, tables.FILLERS)
    pairs = _pairs_of(text for group in phrases for text in group)
    for name, kind in KINDS.items():
        for filling in kind.fillings:
            key = key_of((name, *filling))
            pairs |= _pairs_of((*key.answers, *key.wrong, *key.details, key.short))
    return frozenset(pairs)


@dataclass(frozen=True)
class _Topic:
    pairs: frozenset[tuple[str, str]]  # pairs of words of the task or of courtesies
    details: tuple[str, ...]  # helpful sentences, as spoken


@cache
def _topic(task: tuple[str, ...]) -> _Topic:
    key = key_of(task)
    texts = (*key.answers, *key.details, key.short, *tables.OPENINGS, *tables.CLOSINGS)
    details = tuple(f" {_plain(detail)} " for detail in key.details)
    return _Topic(frozenset(_pairs_of(texts)), details)


@cache
def _rude() -> tuple[str, ...]:
    return tuple(f" {_plain(phrase)} " for phrase in tables.RUDE)


@cache
def _polite() -> tuple[frozenset[tuple[str, ...]], frozenset[tuple[str, ...]]]:
    def sentences(phrases):
        return frozenset(tuple(_sentences(phrase)[0][0]) for phrase in phrases)

    return sentences(tables.OPENINGS), sentences(tables.CLOSINGS)


def _courtesy(sentences: list[list[str]]) -> tuple[bool, int]:
    """Return whether courtesy is in its place, and the count of misplaced words."""
    openings, closings = _polite()
    opened = bool(sentences) and tuple(sentences[0]) in openings
    closed = len(sentences) > 1 and tuple(sentences[-1]) in closings
    inner = sentences[opened : len(sentences) - closed]
    misplaced = sum(
        len(sentence) + 1
        for sentence in inner
        if tuple(sentence) in openings or tuple(sentence) in closings
    )
    return opened or closed, misplaced


def _form(response: str, sentences: list[list[str]], unfinished: bool) -> float:
    """Return 1 for whole sentences with capitals, down to -1 for the worst form."""
    if not sentences:
        return 0.0
    starts = response.lstrip()[:1]
    score = 0.5 * (starts.isupper() or starts.isdigit()) + 0.5 * (not unfinished)
    lower = len(re.findall(r"[.!?]\s+[a-z]", response))
    dangling = sum(sentence[-1] in _DANGLING for sentence in sentences)
    return max(-1.0, score - 0.25 * lower - 0.5 * dangling)


def _repeats(sentences: list[list[str]]) -> int:
    """Count words said twice in a row, and repeated four-word phrases and sentences."""
    words = [word for sentence in sentences for word in sentence]
    doubled = sum(a == b for sentence in sentences for a, b in pairwise(sentence))
    phrases = Counter(zip(words, words[1:], words[2:], words[3:], strict=False))
    whole = Counter(tuple(sentence) for sentence in sentences)
    return (
        doubled
        + sum(count - 1 for count in phrases.values())
        + sum(count - 1 for count in whole.values())
    )
