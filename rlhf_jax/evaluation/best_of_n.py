"""Best of n: the true quality of the sample that a reward model picks out of n.

The score of the picked sample rises with n by construction. Where true quality stops
rising or falls, the reward model is over-optimised (Gao et al., arXiv 2210.10760).

Letters: N prompts, S samples to each; every subset of n of the S samples is one draw.
"""

import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy.special import comb

from rlhf_jax.files import writing_whole


def expected_of_best(scores: np.ndarray, values: np.ndarray, *, n: int) -> np.ndarray:
    """Return the expected value of the sample with the highest score of n: float [N].

    The mean is exact over all subsets of n of the S samples, hence unbiased: with the
    samples ranked from 0 by score, sample i is the best in C(i, n - 1) of the C(S, n)
    subsets. Samples of equal score share the mean of their values.

    Args:
        scores, values: float [N, S].
    """
    count = scores.shape[1]
    if not 1 <= n <= count:
        raise ValueError(f"{n=} must be between 1 and the {count} samples of a prompt.")
    chances = comb(np.arange(count), n - 1) / comb(count, n)
    below = np.concatenate([[0.0], chances.cumsum()])  # of all lower ranks
    ranked = np.sort(scores, axis=1)
    expected = np.empty(len(scores))
    for i, (row, ranks) in enumerate(zip(scores, ranked, strict=True)):
        # The probability of each score to be the best, shared by the samples of that
        # score.
        first, last = (np.searchsorted(ranks, row, side) for side in ("left", "right"))
        chance = (below[last] - below[first]) / (last - first)
        expected[i] = chance @ values[i]
    return expected


def kl_of_best(n: int) -> float:
    """Return an upper bound of KL(best of n || policy) in nats, log n - (n - 1) / n,
    which is tight while samples do not repeat (arXiv 2401.01879)."""
    return math.log(n) - (n - 1) / n


def plot(curve: list[dict], path: Path) -> None:
    """Plot true quality and score against KL, from the rows of stages/best_of_n.py."""
    kl = [row["kl"] for row in curve]
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    for name, picker in (("oracle", "the truth"), ("quality", "the reward model")):
        mean, low, high = (
            np.array([row[name][key] for row in curve])
            for key in ("mean", "low", "high")
        )
        bars = (mean - low, high - mean)
        axes.errorbar(kl, mean, bars, marker="o", capsize=3, label=f"by {picker}")
    axes.set_xlabel("KL from the policy, nats (log n - (n - 1) / n)")
    axes.set_ylabel("true quality of the best of n")
    right = axes.twinx()
    score = [row["score"]["mean"] for row in curve]
    right.plot(kl, score, "s--", color="grey", label="score (right)")
    right.set_ylabel("score")
    figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    with writing_whole(path, "wb") as file:
        figure.savefig(file, dpi=120)
