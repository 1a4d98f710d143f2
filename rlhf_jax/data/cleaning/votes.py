"""Comparisons as numpy columns, in which a million comparisons fit into 100 MB.

Two prompts are the same if their messages are equal, whatever their ids; two responses
to a prompt are the same if their texts are equal up to surrounding white space. A
response is identified by 64 bits of its hash: among ten million responses a collision
has a probability of 1 in 400,000.
"""

import hashlib
from array import array
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from rlhf_jax.data.records import Comparison, Prompt

UNNAMED = -1  # value of Votes.annotator for an unknown annotator

_SIGN = {"a": 1, "b": -1, "tie": 0, "": 0}
_BATCH = 4096  # number of texts measured at a time


class Votes(NamedTuple):
    """The columns of N comparisons. A pair's responses are ordered by their hashes, so
    that the order in which they were stored or shown has no effect: 1 means the first
    response of the pair (`one`), -1 the second (`other`), 0 neither."""

    one: np.ndarray  # int64 [N]: the pair's first response, an index into `lengths`
    other: np.ndarray  # int64 [N]: the pair's second response, likewise
    pair: np.ndarray  # int64 [N]: number of the unordered pair
    verdict: np.ndarray  # int8 [N]: the better response; 0 for a tie
    shown_first: np.ndarray  # int8 [N]: the response shown first; 0 if unknown
    known: np.ndarray  # int8 [N]: right answer of a known-answer task; 0 for others
    empty: np.ndarray  # bool [N]: True if a response is empty
    annotator: np.ndarray  # int64 [N]: index into `annotators`, or UNNAMED
    conversation: np.ndarray  # float [N]: hash in [0, 1) of the first user turn
    annotators: list[str]  # sorted names
    lengths: np.ndarray  # int64 [responses]: length of each distinct (prompt, response)


def read_votes(
    comparisons: Iterable[Comparison], measure: Callable[[list[str]], Iterable[int]]
) -> Votes:
    """Convert comparisons to columns, without keeping the texts.

    A comparison answers a known-answer task if `info["known_answer"]` is "a" or "b".

    Args:
        measure: a function that returns the lengths of texts; every distinct response
            is measured once.
    """
    keys = array("Q")  # hashes of response a, response b
    signs = array("b")  # verdict, shown first, known answer: 1 is a, -1 is b
    empty, annotator, conversation = array("b"), array("q"), array("d")
    names: dict[str, int] = {"": UNNAMED}
    lengths = _Lengths(measure)
    for comparison in comparisons:
        texts = comparison.response_a.strip(), comparison.response_b.strip()
        prompt = _prompt_key(comparison.prompt)
        for text in texts:
            keys.append(int.from_bytes(_hash(prompt + _bytes(text), 8)))
            lengths.add(keys[-1], text)
        known = (comparison.info or {}).get("known_answer")
        signs.append(_SIGN[comparison.preference])
        signs.append(_SIGN[comparison.shown_first])
        signs.append(_SIGN[known] if known in ("a", "b") else 0)
        empty.append(not all(texts))
        annotator.append(names.setdefault(comparison.annotator, len(names) - 1))
        conversation.append(_place(comparison.prompt))

    responses, index = np.unique(np.array(keys, np.uint64), return_inverse=True)
    a, b = index.reshape(-1, 2).T
    one, other = np.minimum(a, b), np.maximum(a, b)
    a_or_b = np.where(a <= b, 1, -1).astype(np.int8)  # 1 where a is `one`
    verdict, shown_first, known = np.array(signs, np.int8).reshape(-1, 3).T * a_or_b
    named = list(names)[1:]
    rank = {name: i for i, name in enumerate(sorted(named))}
    ranks = np.array([*(rank[name] for name in named), UNNAMED], int)
    return Votes(
        one=one,
        other=other,
        pair=np.unique(one * len(responses) + other, return_inverse=True)[1],
        verdict=verdict,
        shown_first=shown_first,
        known=known,
        empty=np.array(empty, bool),
        annotator=ranks[np.array(annotator, int)],  # index -1 is the last, UNNAMED
        conversation=np.array(conversation, float),
        annotators=sorted(named),
        lengths=lengths.of(responses.tolist()),
    )


class _Lengths:
    """The lengths of texts, measured once each, in batches on another thread."""

    def __init__(self, measure: Callable[[list[str]], Iterable[int]]):
        self._measure = measure
        self._pool = ThreadPoolExecutor(1)
        self._lengths: dict[int, int] = {}  # lengths by key, 0 until measured
        self._queued: dict[int, str] = {}  # texts of the next batch by key
        self._running: list[tuple[list[int], Future]] = []  # at most one batch

    def add(self, key: int, text: str) -> None:
        if key not in self._lengths:
            self._lengths[key] = 0
            self._queued[key] = text
            if len(self._queued) == _BATCH:
                self._start()

    def of(self, keys: list[int]) -> np.ndarray:
        self._start()
        self._wait()
        self._pool.shutdown()
        return np.array([self._lengths[key] for key in keys], int)

    def _start(self) -> None:
        self._wait()
        job = self._pool.submit(self._measure, list(self._queued.values()))
        self._running = [(list(self._queued), job)]
        self._queued = {}

    def _wait(self) -> None:
        for keys, job in self._running:
            self._lengths.update(zip(keys, job.result(), strict=True))


def _prompt_key(prompt: Prompt) -> bytes:
    # A length precedes every part, so that no text can imitate a boundary.
    parts = (_bytes(m[field]) for m in prompt.messages for field in ("role", "content"))
    return _hash(b"".join(b"%d:%b" % (len(part), part) for part in parts), 16)


def _place(prompt: Prompt) -> float:
    turns = (m["content"] for m in prompt.messages if m["role"] == "user")
    return int.from_bytes(_hash(_bytes(next(turns)), 6)) / 2**48


def _hash(data: bytes, size: int) -> bytes:
    return hashlib.blake2b(data, digest_size=size).digest()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # JSON may hold lone surrogates
