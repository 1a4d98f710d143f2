"""Demonstrations: answers to testbed prompts in three modes, good, padded, sloppy."""

import numpy as np

from rlhf_jax.data.testbed import tables
from rlhf_jax.data.testbed.kinds import Key


def respond(key: Key, mode: str, rng: np.random.Generator) -> str:
    """Return a demonstration in one of the three modes."""
    return {"good": _good, "padded": _padded, "sloppy": _sloppy}[mode](key, rng)


def _good(key: Key, rng: np.random.Generator) -> str:
    """Return a courteous and right answer, most often with a helpful detail."""
    opened = rng.random() < 0.75
    parts = [pick(tables.OPENINGS, rng)] if opened else []
    parts.append(pick(key.answers, rng))
    if rng.random() < 0.75:
        parts.append(pick(key.details, rng))
    if not opened or rng.random() < 0.2:
        parts.append(pick(tables.CLOSINGS, rng))
    return " ".join(parts)


def _padded(key: Key, rng: np.random.Generator) -> str:
    """Return a right answer among sentences that say nothing."""
    fillers = list(rng.permutation(tables.FILLERS)[:2])
    parts = [pick(tables.OPENINGS, rng)] if rng.random() < 0.4 else []
    if rng.random() < 0.5:
        parts.append(fillers.pop())
    parts += [pick(key.answers, rng), *fillers]
    if rng.random() < 0.25:
        parts.append(pick(tables.CLOSINGS, rng))
    return " ".join(parts)


def _sloppy(key: Key, rng: np.random.Generator) -> str:
    """Return an answer that is wrong, evasive, rude or badly written."""
    fault = rng.choice(
        ["wrong", "evasive", "rude", "careless"], p=[0.4, 0.15, 0.2, 0.25]
    )
    if fault in ("wrong", "evasive"):
        parts = [pick(tables.OPENINGS, rng)] if rng.random() < 0.4 else []
        parts.append(pick(key.wrong if fault == "wrong" else tables.REFUSALS, rng))
        # Fillers, so that length does not reveal a bad answer.
        fillers = rng.permutation(tables.FILLERS)[: rng.integers(4)]
        return " ".join([*parts, *fillers])
    if fault == "rude":
        texts = key.answers if rng.random() < 0.5 else key.wrong
        return f"{pick(tables.RUDE, rng)} {pick(texts, rng)}"
    answer = pick(key.answers, rng)
    if rng.random() < 0.5:  # no capital at the start, no mark at the end
        return answer[0].lower() + answer[1:-1]
    words = answer.split(" ")
    return " ".join(words[: max(2, int(len(words) * rng.uniform(0.4, 0.9)))]).rstrip(
        "."
    )


def pick(options, rng: np.random.Generator):
    return options[int(rng.integers(len(options)))]
