"""A reward model on held-out comparisons: its scores and their report."""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from rlhf_jax.data import packing
from rlhf_jax.data.encoding import Pair
from rlhf_jax.data.records import Comparison
from rlhf_jax.data.testbed.quality import true_quality
from rlhf_jax.evaluation.baselines import rival_margins
from rlhf_jax.evaluation.intervals import task_key
from rlhf_jax.evaluation.preferences import JudgedPairs, assess, headline
from rlhf_jax.evaluation.reward_report import write_report
from rlhf_jax.generation.scoring import packed_scores
from rlhf_jax.models.heads import ScoreModel
from rlhf_jax.parallel.mesh import row_unit
from rlhf_jax.parallel.sharding import fetch

_score = jax.jit(packed_scores)


def score_pairs(
    model: ScoreModel,
    pairs: Sequence[Pair],
    *,
    pad_id: int,
    multiple: int,
    batch_size: int,
) -> np.ndarray:
    """Return the scores of chosen and rejected: float32 [N, 2]. Pairs are packed into
    rows as wide as the longest, rounded up to a multiple of `multiple` tokens, and
    `batch_size` rows at most are scored at once."""
    scores = np.empty((len(pairs), 2), np.float32)
    batches = packing.pack_held_out_pairs(
        pairs,
        pad_id=pad_id,
        multiple=multiple,
        unit=row_unit(1),
        batch_size=batch_size,
        share=model.config.attention != "splash",
    )
    for rows in batches:
        is_pair = rows.slots < len(pairs)
        scores[rows.slots[is_pair]] = fetch(_score(model, rows))[is_pair]
    return scores


def evaluate_held_out(
    scores: np.ndarray,
    comparisons: Sequence[Comparison],
    pairs: Sequence[Pair],
    train_pairs: Sequence[Pair],
    folder: Path,
) -> dict[str, float]:
    """Write the report of `reward_report` into `folder`; return its headline numbers.

    Args:
        scores: float [N, 2].
        comparisons, pairs: the same N comparisons as text and as token ids.
        train_pairs: the training data of the bag-of-words baseline.
    """
    rivals = rival_margins(train_pairs, pairs)
    report = assess(scores, judged_pairs(comparisons, pairs), rivals)
    write_report(folder, report, scores, comparisons)
    return headline(report)


def judged_pairs(
    comparisons: Sequence[Comparison], pairs: Sequence[Pair]
) -> JudgedPairs:
    """Return the prompts, intents and lengths of comparisons, and the true qualities
    where all comparisons belong to the testbed."""
    qualities = None
    if all(c.prompt.task is not None for c in comparisons):
        qualities = np.array(
            [
                [true_quality(c.prompt, text) for text in (c.chosen, c.rejected)]
                for c in comparisons
            ]
        )
    return JudgedPairs(
        prompts=[
            task_key(c.prompt, prompt)
            for c, (prompt, _, _) in zip(comparisons, pairs, strict=True)
        ],
        intents=[c.prompt.intent for c in comparisons],
        lengths=np.array(
            [[len(chosen), len(rejected)] for _, chosen, rejected in pairs]
        ),
        qualities=qualities,
    )
