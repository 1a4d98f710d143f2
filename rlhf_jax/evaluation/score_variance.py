"""The variance of scores between prompts and within, and what a baseline leaves of it.

With W the variance of the scores of one prompt's responses and B the variance between
the prompts' mean scores, the variance of a score minus its baseline is

    no baseline                     W + B
    one sampled answer              W + W
    the mean of K sampled answers   W + W / K
    leave-one-out of K responses    W + W / (K - 1)
    the greedy answer               W + variance of its distance from the mean score
    the prompt's mean score         W

so K answers of the reference lower the variance if and only if B > W / K. A critic
takes away a part of B in any case; it cannot take away the noise of a sampled baseline.

Letters: N prompts, K responses to each.
"""

import math
from typing import NamedTuple

import numpy as np

ANSWERS = (1, 4, 8)  # numbers of answers whose mean is a baseline
BOUND = "the prompt's mean"  # what no baseline from answers goes below


class ScoreVariance(NamedTuple):
    """Both variances, without bias."""

    between: float  # B
    within: float  # W

    @property
    def ratio(self) -> float:
        """Return B / W, NaN where no prompt's scores vary."""
        return self.between / self.within if self.within > 0 else float("nan")


def score_variance(scores: np.ndarray) -> ScoreVariance:
    """Measure the variances of scores, float [N, K], both numbers at least 2.

    The variance of the mean scores is B + W / K, from which the estimate of W / K is
    taken away; so B may come out below 0 where it is small.
    """
    within = scores.var(axis=1, ddof=1).mean()
    between = scores.mean(axis=1).var(ddof=1) - within / scores.shape[1]
    return ScoreVariance(float(between), float(within))


def variance_left(scores: np.ndarray, greedy: np.ndarray) -> dict[str, float]:
    """Return the variance of a score minus each baseline, by the baseline's name.

    Args:
        scores: float [N, K], of sampled answers.
        greedy: float [N], of the likeliest answers.
    """
    between, within = score_variance(scores)
    samples = scores.shape[1]
    distance = (scores.mean(axis=1) - greedy).var(ddof=1) - within / samples
    return {
        "none": within + between,
        "greedy": within + float(distance),
        **{f"mean of {k}": within + within / k for k in ANSWERS},
        f"leave-one-out of {samples}": within + within / (samples - 1),
        BOUND: within,
    }


def best_baselines(left: dict[str, float]) -> tuple[str, str]:
    """Return the baseline that leaves the least variance, of all and of those that need
    at most one answer of the reference.

    Args:
        left: what `variance_left` returns.
    """
    every = [name for name in left if name != BOUND]
    cheap = ("none", "greedy", "mean of 1")
    return min(every, key=left.__getitem__), min(cheap, key=left.__getitem__)


def least_answers(variance: ScoreVariance) -> int | None:
    """Return the least number K of answers whose mean lowers the variance, B > W / K;
    None where no number does."""
    if variance.between <= 0:
        return None
    return math.floor(variance.within / variance.between) + 1
