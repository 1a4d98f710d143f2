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
from rlhf_jax.data.testbed.pools import TestbedConfig, demonstrate
from rlhf_jax.data.testbed.quality import true_quality
from rlhf_jax.data.testbed.styles import respond
from rlhf_jax.data.testbed.tasks import task_of

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


def right_against_wrong(prompts: Sequence[Prompt], *, seed: int) -> list[Comparison]:
    """Make comparisons with a known answer: a right answer in a fitting style against a
    wrong one in an unfitting style, for each prompt where the true quality of the two
    is `CERTAIN` apart."""
    rng = _stream(seed, "known answers")
    comparisons = []
    for prompt in prompts:
        task = task_of(prompt)
        good, bad = (respond(task, rng, right=x, suited=x) for x in (True, False))
        if true_quality(prompt, good) - true_quality(prompt, bad) < CERTAIN:
            continue
        if rng.random() < 0.5:
            comparisons.append(Comparison(prompt, good, bad, "a"))
        else:
            comparisons.append(Comparison(prompt, bad, good, "b"))
    return comparisons


def write_demonstrated(
    folder: Path, annotators: Sequence[Annotator], config: TestbedConfig
) -> None:
    """Write comparisons of two demonstrations each, for stages run by themselves (a
    pipeline instead collects comparisons of its SFT model's responses)."""
    for name, source in {
        "comparisons": "comparison_prompts",
        "comparisons_test": "eval_prompts",
    }.items():
        rng = _stream(config.seed, f"{name}/demonstrations")
        pairs = [
            (
                prompt,
                *(Response(demonstrate(config, prompt, rng).response) for _ in "ab"),
            )
            for prompt in read_records(folder / f"{source}.jsonl", Prompt)
        ]
        compared = compare(pairs, annotators, seed=config.seed, stream=name)
        write_records(folder / f"{name}.jsonl", compared)


def _stream(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(name.encode())])
