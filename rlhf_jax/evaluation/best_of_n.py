"""Best of n: the reward model picks one of n samples; what does the truth say?

As n grows the picked score rises by construction. Where true quality stops rising or
falls, the reward model is over-optimised (Gao et al., arXiv 2210.10760).

Letters: N prompts, S samples to each, of which every subset of n is one draw.
"""

import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy.special import comb

from rlhf_jax.files import writing_whole


def expected_of_best(scores: np.ndarray, values: np.ndarray, *, n: int) -> np.ndarray:
    """The expected value of the sample with the highest score of n: float [N].

    Exact over all subsets of n of the S samples, hence unbiased: of samples ranked from
    0 by score, the one of rank i is the best of C(i, n - 1) of C(S, n) subsets. Samples
    of one score share the mean of their values.

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
        # The chance that the best score is this one, spread over those that have it.
        first, last = (np.searchsorted(ranks, row, side) for side in ("left", "right"))
        chance = (below[last] - below[first]) / (last - first)
        expected[i] = chance @ values[i]
    return expected


def kl_of_best(n: int) -> float:
    """KL(best of n || policy) in nats: log n - (n - 1) / n, an upper bound that is
    tight while samples do not repeat (arXiv 2401.01879)."""
    return math.log(n) - (n - 1) / n


def plot(curve: list[dict], path: Path) -> None:
    """True quality and score against KL, from rows as of stages/best_of_n.py."""
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
