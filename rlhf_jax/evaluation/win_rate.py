"""Win, tie and lose of one model against another on the same prompts.

A result is 1 for a win, 0 for a tie, -1 for a loss. Where a judge saw both orders of
two answers, the result is the mean of the two.
"""

from collections.abc import Callable, Sequence

import choix
import numpy as np
from scipy import optimize, special, stats


def results(ours: np.ndarray, theirs: np.ndarray, *, tie_margin: float) -> np.ndarray:
    """The result on each prompt, float [prompts], from the quality of the answers.

    Args:
        tie_margin: differences up to it are ties.
    """
    difference = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    return (difference > tie_margin).astype(float) - (difference < -tie_margin)


def win_rate(result: np.ndarray, *, seed: int) -> dict[str, float]:
    """Shares of prompts won, tied and lost, and wins minus losses ("net") with a 95 %
    interval: the percentile bootstrap over prompts, which keeps the answers to a prompt
    together."""
    result = np.asarray(result, np.float64)
    low, high = _interval(np.mean, result, seed)
    return {
        "win": float((result > 0).mean()),
        "tie": float((result == 0).mean()),
        "lose": float((result < 0).mean()),
        "net": float(result.mean()),
        "net_low": low,
        "net_high": high,
    }


def by_group(
    result: np.ndarray, groups: Sequence[str], *, seed: int
) -> dict[str, dict[str, float]]:
    """`win_rate` for each group of prompts, such as their intents."""
    groups = np.asarray(groups)
    return {
        str(name): win_rate(result[groups == name], seed=seed)
        | {"prompts": int((groups == name).sum())}
        for name in np.unique(groups)
    }


def length_controlled(
    result: np.ndarray, length_difference: np.ndarray, *, seed: int
) -> dict[str, float]:
    """Wins minus losses if both answers were equally long.

    A logistic regression of the result (a tie is half a win) on the difference of the
    lengths in its standard deviations, squashed by tanh, read at difference 0; as the
    length-controlled AlpacaEval does (arXiv 2404.04475), without its terms for the
    prompt's difficulty.

    Args:
        length_difference: ours minus theirs, in tokens: float [prompts].
    """
    won = (np.asarray(result, np.float64) + 1) / 2
    scale = np.std(length_difference)
    feature = np.tanh(np.asarray(length_difference) / scale) if scale else 0 * won

    def net(won, feature):
        def loss(weights):
            logits = weights[0] + weights[1] * feature
            # A light prior, so that a model that always wins has a finite rating.
            prior = 0.5 * np.square(weights).sum() / 100
            return np.logaddexp(0, logits).sum() - (won * logits).sum() + prior

        return 2 * special.expit(optimize.minimize(loss, np.zeros(2)).x[0]) - 1

    low, high = _interval(net, (won, feature), seed, resamples=200)
    found = {"net": float(net(won, feature)), "net_low": low, "net_high": high}
    return {f"length_controlled_{name}": x for name, x in found.items()}


def bradley_terry(
    names: Sequence[str], result: Callable[[str, str], np.ndarray]
) -> dict[str, float]:
    """Ratings of more than two models in Elo points, their mean 0 (Bradley and Terry).

    Args:
        result: of the first against the second, float [prompts]. A tie counts as half
            a win for each.
    """
    wins = np.zeros((len(names), len(names)))
    for i, one in enumerate(names):
        for j, other in enumerate(names[:i]):
            won = (result(one, other) + 1) / 2
            wins[i, j], wins[j, i] = won.sum(), (1 - won).sum()
    strength = choix.ilsr_pairwise_dense(wins, alpha=1e-3)
    strength = (strength - strength.mean()) * 400 / np.log(10)
    return dict(zip(names, map(float, strength), strict=True))


def mean_with_interval(values: np.ndarray, *, seed: int) -> dict[str, float]:
    """Mean and its 95 % bootstrap interval."""
    low, high = _interval(np.mean, values, seed)
    return {"mean": float(np.mean(values)), "low": low, "high": high}


def _interval(statistic, values, seed: int, resamples: int = 2000):
    """95 % percentile bootstrap of a statistic of one array, or of several in step."""
    arrays = values if isinstance(values, tuple) else (values,)
    arrays = tuple(np.asarray(x, np.float64) for x in arrays)
    if len(arrays[0]) < 2 or all(np.ptp(x) == 0 for x in arrays):
        same = float(statistic(*arrays))
        return same, same
    interval = stats.bootstrap(
        arrays,
        statistic,
        n_resamples=resamples,
        method="percentile",
        paired=True,
        vectorized=statistic is np.mean,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)
