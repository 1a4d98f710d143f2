"""Whether a reward model knows how sure it can be.

The Bradley-Terry model behind the ranking loss says that the response with the higher
score is the better one with probability sigmoid(|margin|): its confidence, between 1/2
and 1. Calibrated, it is right as often as it says (Guo et al., arXiv 1706.04599).
"""

from collections.abc import Hashable, Sequence

import numpy as np
from scipy.special import expit

from rlhf_jax.evaluation.intervals import pair_accuracy

NUM_BINS = 10  # of equal width between 1/2 and 1


def reliability(margins: np.ndarray, prompts: Sequence[Hashable] | None = None) -> dict:
    """Confidence against accuracy.

    Args:
        prompts: of each margin; None: every pair has its own.

    Returns:
        expected_error: the mean over pairs of their bin's |accuracy - confidence|.
        bins: for each that is not empty, mean confidence, and what `pair_accuracy`
            says: accuracy, its interval and the number of pairs.
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
