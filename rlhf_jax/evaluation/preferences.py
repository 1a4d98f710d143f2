"""Agreement of scores with preferences: numbers computed from arrays.

Arrays [N, 2] have a row for each pair of responses: chosen, rejected. A margin is the
score of chosen minus the score of rejected: right if positive, half right if 0.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from rlhf_jax.evaluation.calibration import reliability
from rlhf_jax.evaluation.intervals import half_right, pair_accuracy

# Lower ends of the buckets of the difference of lengths, in tokens.
LENGTH_EDGES = (0, 1, 10, 20, 40, 80, 160)
LENGTH_NAMES = ("0", "1-9", "10-19", "20-39", "40-79", "80-159", "160+")


class JudgedPairs(NamedTuple):
    """Held-out pairs with all that is known of them besides their scores."""

    prompts: Sequence[Hashable]  # keys, equal for pairs of one prompt
    intents: Sequence[str]  # "" where the intent is unknown
    lengths: np.ndarray  # int [N, 2], lengths of the responses in tokens
    qualities: np.ndarray | None  # float [N, 2], true qualities, or None


def assess(
    scores: np.ndarray, pairs: JudgedPairs, rivals: dict[str, np.ndarray]
) -> dict:
    """Return the report of a reward model as a tree for JSON.

    Args:
        scores: float [N, 2].
        rivals: the margins [N] of baselines by name; the accuracy of each baseline is
            reported beside every accuracy of the scores.
    """
    margins = scores[:, 0] - scores[:, 1]
    report = {
        "accuracy": {
            group: pair_accuracy(margins[rows], _take(pairs.prompts, rows))
            | {name: float(half_right(x[rows]).mean()) for name, x in rivals.items()}
            for group, rows in groups(pairs).items()
        },
        "scores": {
            "mean": float(scores.mean()),
            "std": float(scores.std()),
            "chosen_mean": float(scores[:, 0].mean()),
            "chosen_std": float(scores[:, 0].std()),
            "rejected_mean": float(scores[:, 1].mean()),
            "rejected_std": float(scores[:, 1].std()),
            "margin": float(margins.mean()),
        },
        "length_correlation": correlations(scores, pairs.lengths),
        "calibration": reliability(margins, pairs.prompts),
    }
    if pairs.qualities is not None and np.ptp(pairs.qualities, axis=1).any():
        report["truth"] = truth(scores, pairs)
    return report


def truth(scores: np.ndarray, pairs: JudgedPairs) -> dict:
    """Return the agreement with true quality: how often the better response of a pair
    scores higher (pairs of equal quality are left out), and correlations. The
    correlation of quality with length shows how much of the scores' correlation with
    length is justified."""
    better = np.sign(pairs.qualities[:, 0] - pairs.qualities[:, 1])
    rows = np.flatnonzero(better)
    margins = (better * (scores[:, 0] - scores[:, 1]))[rows]
    return {
        **pair_accuracy(margins, _take(pairs.prompts, rows)),
        "correlation": correlations(scores, pairs.qualities),
        "length_correlation": correlations(pairs.qualities, pairs.lengths),
    }


def headline(report: dict) -> dict[str, float]:
    """Return the numbers of a report that summaries quote."""
    scores, length = report["scores"], report["length_correlation"]
    numbers = report["accuracy"]["all"] | {
        "margin": scores["margin"],
        "score_mean": scores["mean"],
        "score_std": scores["std"],
        "length_correlation": length["responses"],
        "length_correlation_within": length["within_pairs"],
        "calibration_error": report["calibration"]["expected_error"],
    }
    if "truth" in report:
        quality = report["truth"]
        for name in ("accuracy", "accuracy_low", "accuracy_high"):
            numbers[f"true_{name}"] = quality[name]
        numbers["true_correlation"] = quality["correlation"]["responses"]
        numbers["true_length_correlation"] = quality["length_correlation"]["responses"]
    return numbers


def groups(pairs: JudgedPairs) -> dict[str, np.ndarray]:
    """Return the reported groups of pairs: name to row indices [M]."""
    difference = pairs.lengths[:, 0] - pairs.lengths[:, 1]
    bucket = np.searchsorted(LENGTH_EDGES, np.abs(difference), side="right") - 1
    intents = np.array(pairs.intents)
    masks = {"all": np.ones(len(difference), bool)}
    for name in sorted(set(pairs.intents) - {""}):
        masks[f"intent: {name}"] = intents == name
    for i, name in enumerate(LENGTH_NAMES):
        masks[f"length differs by {name}"] = bucket == i
    masks["chosen longer"] = difference > 0
    masks["rejected longer"] = difference < 0
    return {name: np.flatnonzero(mask) for name, mask in masks.items() if mask.any()}


def correlations(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Return Pearson's correlation of x and y, both [N, 2]: over all responses, and of
    the differences within pairs (each pair in both orders), where prompts cancel out.

    The correlation is 0 where x or y is constant.
    """
    both = np.stack([x.ravel(), y.ravel()]).astype(np.float64)
    inside = np.stack([x[:, 0] - x[:, 1], y[:, 0] - y[:, 1]]).astype(np.float64)
    return {
        "responses": _cosine(*(both - both.mean(axis=1, keepdims=True))),
        "within_pairs": _cosine(*inside),
    }


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else 0.0


def _take(values: Sequence, rows: np.ndarray) -> list:
    return [values[i] for i in rows]
