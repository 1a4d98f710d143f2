"""How well scores agree with preferences."""

import numpy as np
from scipy import stats


def pair_accuracy(scores: np.ndarray) -> dict[str, float]:
    """Accuracy of scores [N, 2] of (chosen, rejected), with a 95 % Wilson interval.

    A tie counts as half right.
    """
    margin = scores[:, 0] - scores[:, 1]
    right = (margin > 0).sum() + 0.5 * (margin == 0).sum()
    low, high = stats.binomtest(int(right), len(margin)).proportion_ci(method="wilson")
    return {
        "accuracy": float(right / len(margin)),
        "accuracy_low": float(low),
        "accuracy_high": float(high),
        "margin": float(margin.mean()),
        "score_mean": float(scores.mean()),
        "score_std": float(scores.std()),
    }
