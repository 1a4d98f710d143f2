"""Calibration of a reward model: confidence against accuracy.

Under the Bradley-Terry model of the ranking loss the response with the higher score is
the better one with probability sigmoid(|margin|): the confidence, between 1/2 and 1. A
calibrated model is right as often as its confidence says (Guo et al., arXiv
1706.04599).
"""

from collections.abc import Hashable, Sequence

import numpy as np
from scipy.special import expit

from rlhf_jax.evaluation.intervals import pair_accuracy

NUM_BINS = 10  # bins of equal width between 1/2 and 1


def reliability(margins: np.ndarray, prompts: Sequence[Hashable] | None = None) -> dict:
    """Compare confidence with accuracy, in bins of confidence.

    Args:
        prompts: the prompt of each margin; None gives every pair its own prompt.

    Returns:
        expected_error: the mean over pairs of their bin's |accuracy - confidence|.
        bins: for each bin that is not empty, the mean confidence and the result of
            `pair_accuracy`: accuracy, its interval and the number of pairs.
    """
    prompts = range(len(margins)) if prompts is None else prompts
    confidence = expit(np.abs(margins))
    place = np.minimum(((confidence - 0.5) * 2 * NUM_BINS).astype(int), NUM_BINS - 1)
    bins = [
        {
            "confidence": float(confidence[rows].mean()),
            **pair_accuracy(margins[rows], [prompts[i] for i in rows]),
        }
        for rows in (np.flatnonzero(place == i) for i in range(NUM_BINS))
        if rows.size
    ]
    error = sum(b["pairs"] * abs(b["accuracy"] - b["confidence"]) for b in bins)
    return {"expected_error": error / len(margins), "bins": bins}
