"""Confidence intervals of the accuracy on held-out pairs, and a test of two models."""

import json
from collections.abc import Hashable, Sequence

import numpy as np
from scipy.stats import binomtest

from rlhf_jax.data.records import Prompt


def pair_accuracy(
    margins: np.ndarray, prompts: Sequence[Hashable] | None = None
) -> dict[str, float]:
    """Return the share of margins [N] that are right, with its 95 % interval.

    The interval is Wilson's for the effective number of independent pairs: pairs of one
    prompt that are right or wrong together count for less (the design effect of
    surveys). Without `prompts` all pairs are independent.
    """
    right = half_right(margins)
    accuracy = right.mean()
    if prompts is None:
        prompts = range(len(right))
    place = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    index = np.array([place[prompt] for prompt in prompts])
    by_prompt = np.bincount(index, right - accuracy)
    independent, clustered = ((right - accuracy) ** 2).sum(), (by_prompt**2).sum()
    design_effect = max(1.0, clustered / independent) if independent > 0 else 1.0
    low, high = wilson(accuracy, len(right) / design_effect)
    return {
        "accuracy": float(accuracy),
        "accuracy_low": low,
        "accuracy_high": high,
        "pairs": len(right),
    }


def wilson(share: float, count: float) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share of `count` independent cases."""
    z = 1.959964
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count)
    half *= np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    # The interval contains the share in spite of rounding.
    return float(min(centre - half, share)), float(max(centre + half, share))


def half_right(margins: np.ndarray) -> np.ndarray:
    """Return 1 where a margin is positive, 1/2 where it is 0, else 0."""
    return (np.sign(margins) + 1) / 2


def mcnemar(right: np.ndarray, other: np.ndarray) -> float:
    """Return the two-sided p-value of McNemar's exact test that two models are right
    equally often on the same pairs: only pairs count that one of the models orders
    better than the other does.

    Args:
        right, other: float [N], 1 where a model is right, 1/2 at equal scores, else 0.
    """
    better, worse = int((right > other).sum()), int((right < other).sum())
    return float(binomtest(better, better + worse).pvalue) if better + worse else 1.0


def task_key(prompt: Prompt, ids: Sequence[int]) -> Hashable:
    """Return the key of what a prompt asks: results with the same key are not
    independent. The testbed puts a task in several wordings; elsewhere a prompt, given
    by its token ids, may occur twice."""
    if prompt.task is None:
        return tuple(ids)
    return json.dumps(prompt.task, sort_keys=True)
