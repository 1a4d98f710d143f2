"""Whether a reward model knows how sure it can be.

The Bradley-Terry model behind the ranking loss says that the response with the higher
score is the better one with probability sigmoid(|margin|): its confidence, between 1/2
and 1. Calibrated, it is right as often as it says (Guo et al., arXiv 1706.04599).
"""

import numpy as np
from scipy.special import expit

NUM_BINS = 10  # of equal width between 1/2 and 1


def reliability(margins: np.ndarray) -> dict:
    """Confidence against accuracy.

    Returns:
        expected_error: the mean over pairs of their bin's |accuracy - confidence|.
        bins: for each that is not empty, mean confidence, accuracy and number of pairs.
    """
    confidence = expit(np.abs(margins))
    right = (np.sign(margins) + 1) / 2
    place = np.minimum(((confidence - 0.5) * 2 * NUM_BINS).astype(int), NUM_BINS - 1)
    bins = [
        {
            "confidence": float(confidence[rows].mean()),
            "accuracy": float(right[rows].mean()),
            "pairs": int(rows.sum()),
        }
        for rows in (place == i for i in range(NUM_BINS))
        if rows.any()
    ]
    error = sum(b["pairs"] * abs(b["accuracy"] - b["confidence"]) for b in bins)
    return {"expected_error": error / len(margins), "bins": bins}
