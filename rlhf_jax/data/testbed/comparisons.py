"""Comparisons by the testbed's annotators, as records."""

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rlhf_jax.data.records import (
    CRITERIA,
    Comparison,
    Prompt,
    Response,
    fields_of,
    read_records,
    write_records,
)
from rlhf_jax.data.testbed.annotators import Annotator, annotate
from rlhf_jax.data.testbed.demonstrations import respond
from rlhf_jax.data.testbed.quality import true_quality
from rlhf_jax.data.testbed.tasks import key_of, task_of

MODES = ("good", "padded", "sloppy")
CERTAIN = 2.0  # smallest difference of a known answer, in points of true quality


def compare(
    pairs: Sequence[tuple[Prompt, Response, Response]],
    annotators: Sequence[Annotator],
    *,
    seed: int,
    stream: str,
) -> list[Comparison]:
    """Have an annotator, drawn at random, compare each (prompt, response, response).

    Args:
        stream: the name of this use of the seed, so that each use has random numbers
            of its own.
    """
    rng = _stream(seed, stream)
    comparisons = []
    for prompt, a, b in pairs:
        annotator = annotators[rng.integers(len(annotators))]
        note = annotate(prompt, a.text, b.text, annotator, rng)
        comparisons.append(
            Comparison(
                prompt=prompt,
                preference=note.preference,
                annotator=note.annotator,
                criteria={name: getattr(note, name) for name in CRITERIA},
                shown_first=note.order_shown[0],
                seconds=note.seconds,
                info={"annotator_kind": note.annotator_kind},
                **fields_of(a, b),
            )
        )
    return comparisons


def good_against_spoilt(prompts: Sequence[Prompt], *, seed: int) -> list[Comparison]:
    """Make comparisons with a known answer: a good demonstration against a sloppy one,
    for each prompt where the true quality of the two is `CERTAIN` apart."""
    rng = _stream(seed, "known answers")
    comparisons = []
    for prompt in prompts:
        key = key_of(task_of(prompt))
        good, sloppy = respond(key, "good", rng), respond(key, "sloppy", rng)
        if true_quality(prompt, good) - true_quality(prompt, sloppy) < CERTAIN:
            continue
        if rng.random() < 0.5:
            comparisons.append(Comparison(prompt, good, sloppy, "a"))
        else:
            comparisons.append(Comparison(prompt, sloppy, good, "b"))
    return comparisons


def write_demonstrated(
    folder: Path, annotators: Sequence[Annotator], seed: int
) -> None:
    """Write comparisons of two demonstrations each, for stages run by themselves (a
    pipeline instead collects comparisons of its SFT model's responses)."""
    for name, source in {
        "comparisons": "comparison_prompts",
        "comparisons_test": "eval_prompts",
    }.items():
        rng = _stream(seed, f"{name}/demonstrations")
        pairs = []
        for prompt in read_records(folder / f"{source}.jsonl", Prompt):
            key = key_of(task_of(prompt))
            a, b = (Response(respond(key, mode, rng)) for mode in rng.choice(MODES, 2))
            pairs.append((prompt, a, b))
        compared = compare(pairs, annotators, seed=seed, stream=name)
        write_records(folder / f"{name}.jsonl", compared)


def _stream(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(name.encode())])
