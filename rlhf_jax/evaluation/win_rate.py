"""Wins, ties and losses of one model against another on the same prompts.

A result is 1 for a win, 0 for a tie, -1 for a loss, and NaN without a verdict (left
out). Where a judge saw two answers in both orders, the result is the mean of the two.

Intervals are of 95 %, by the percentile bootstrap over prompts: both models' answers to
a prompt, and all results of one prompt, are resampled together.
"""

from collections.abc import Callable, Hashable, Sequence

import choix
import numpy as np
from scipy import optimize, special

RESAMPLES = 2000
FIT_RESAMPLES = 200  # where every resample takes a fit


def results(ours: np.ndarray, theirs: np.ndarray, *, tie_margin: float) -> np.ndarray:
    """Return the result on each prompt, float [N], from the quality of the answers.

    Args:
        tie_margin: the largest difference of quality that is a tie.
    """
    difference = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    result = (difference > tie_margin).astype(float) - (difference < -tie_margin)
    return np.where(np.isnan(difference), np.nan, result)


def win_rate(
    result: np.ndarray, *, seed: int, prompts: Sequence[Hashable] | None = None
) -> dict[str, float]:
    """Return the shares of results won, tied and lost, and wins minus losses ("net"),
    each with its interval; "n", the number of results; and "prompts", the number of
    their prompts.

    Args:
        prompts: the prompt of each result; None gives every result its own prompt.

    Raises:
        ValueError: all results are NaN.
    """
    result, prompts = _judged(result, prompts)
    shares = {
        "win": result > 0,
        "tie": result == 0,
        "lose": result < 0,
        "net": result,
    }
    values = np.stack(list(shares.values()), axis=1).astype(float)
    low, high = interval(
        lambda rows: values[rows].mean(0), len(result), seed=seed, prompts=prompts
    )
    numbers: dict[str, float] = {"prompts": len(set(prompts)), "n": len(result)}
    for i, name in enumerate(shares):
        numbers[name] = float(values[:, i].mean())
        numbers[f"{name}_low"], numbers[f"{name}_high"] = float(low[i]), float(high[i])
    return numbers


def by_group(
    result: np.ndarray,
    groups: Sequence[str],
    *,
    seed: int,
    prompts: Sequence[Hashable] | None = None,
) -> dict[str, dict[str, float]]:
    """Return the `win_rate` of each group of prompts, such as an intent; groups without
    any verdict are left out."""
    groups, rates = np.asarray(groups), {}
    for name in np.unique(groups[~np.isnan(result)]):
        rows = np.flatnonzero(groups == name)
        some = prompts and [prompts[i] for i in rows]
        rates[str(name)] = win_rate(result[rows], seed=seed, prompts=some)
    return rates


def length_controlled(
    result: np.ndarray,
    length_difference: np.ndarray,
    *,
    seed: int,
    prompts: Sequence[Hashable] | None = None,
) -> dict[str, float]:
    """Return wins minus losses if both answers were equally long, with the interval.

    The result (a tie is half a win) is regressed by a logistic regression on the
    difference of lengths, divided by its standard deviation and squashed by tanh; the
    prediction at difference 0 is the value. This is the length-controlled AlpacaEval
    (arXiv 2404.04475) without its terms for the prompt's difficulty.

    Args:
        length_difference: our length minus theirs, in tokens: float [N].
    """
    judged = ~np.isnan(result)
    difference = np.asarray(length_difference, np.float64)[judged]
    result, prompts = _judged(result, prompts)
    scale = np.std(difference)
    feature = np.tanh(difference / scale) if scale else 0 * difference
    won = (result + 1) / 2

    def net(rows):
        won_, feature_ = won[rows], feature[rows]

        def loss(weights):
            logits = weights[0] + weights[1] * feature_
            # A weak prior keeps the coefficients finite for a model that always wins.
            prior = 0.5 * np.square(weights).sum() / 100
            wrong = special.expit(logits) - won_
            slope = np.array([wrong.sum(), wrong @ feature_]) + weights / 100
            return np.logaddexp(0, logits).sum() - won_ @ logits + prior, slope

        fit = optimize.minimize(loss, np.zeros(2), jac=True, method="BFGS")
        return 2 * special.expit(fit.x[0]) - 1

    low, high = interval(
        net, len(won), seed=seed, prompts=prompts, resamples=FIT_RESAMPLES
    )
    numbers = {"net": float(net(np.arange(len(won)))), "net_low": low, "net_high": high}
    return {f"length_controlled_{name}": float(x) for name, x in numbers.items()}


def bradley_terry(
    names: Sequence[str],
    result: Callable[[str, str], np.ndarray],
    *,
    seed: int,
    prompts: Sequence[Hashable] | None = None,
) -> dict[str, dict[str, float]]:
    """Return the Bradley-Terry ratings of more than two models in Elo points with mean
    0, each with its interval, and "n", the number of prompts with any result.

    Args:
        result: a function of two names to the results of the first against the second
            on the same N prompts, float [N]. A tie counts as half a win for each.
    """
    pairs = [(i, j) for i in range(len(names)) for j in range(i)]
    won = np.stack([(result(names[i], names[j]) + 1) / 2 for i, j in pairs], axis=1)

    def ratings(rows):
        wins = np.zeros((len(names), len(names)))
        for (i, j), column in zip(pairs, won[rows].T, strict=True):
            wins[i, j], wins[j, i] = np.nansum(column), np.nansum(1 - column)
        strength = choix.ilsr_pairwise_dense(wins, alpha=1e-3)
        return (strength - strength.mean()) * 400 / np.log(10)

    rating = ratings(np.arange(len(won)))
    count = int((~np.isnan(won)).any(axis=1).sum())
    low, high = interval(
        ratings, len(won), seed=seed, prompts=prompts, resamples=FIT_RESAMPLES
    )
    return {
        name: {"rating": float(r), "low": float(a), "high": float(b), "n": count}
        for name, r, a, b in zip(names, rating, low, high, strict=True)
    }


def mean_with_interval(
    values: np.ndarray, *, seed: int, prompts: Sequence[Hashable] | None = None
) -> dict[str, float]:
    """Return the mean of the values that are not NaN, its interval, and the number of
    these values, "n".

    Args:
        prompts: the prompt of each value; None gives every value its own prompt.

    Raises:
        ValueError: all are NaN.
    """
    values, prompts = _judged(values, prompts)
    low, high = interval(
        lambda rows: values[rows].mean(), len(values), seed=seed, prompts=prompts
    )
    return {
        "mean": float(values.mean()),
        "low": float(low),
        "high": float(high),
        "n": len(values),
    }


def interval(
    statistic: Callable[[np.ndarray], np.ndarray],
    count: int,
    *,
    seed: int,
    prompts: Sequence[Hashable] | None = None,
    resamples: int = RESAMPLES,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the low and high end of the 95 % percentile bootstrap over prompts.

    Args:
        statistic: a function of the rows of a resample, int [M], out of `count`.
        prompts: the prompt of each row; rows of one prompt are drawn together.
    """
    groups = _groups(range(count) if prompts is None else prompts)
    alone = len(groups) == count
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(resamples):
        drawn = rng.integers(len(groups), size=len(groups))
        rows = drawn if alone else np.concatenate([groups[i] for i in drawn])
        values.append(statistic(rows))
    # Weibull's plotting positions, k / (n + 1): other quantile definitions make the
    # intervals of few resamples too narrow.
    low, high = np.quantile(values, (0.025, 0.975), axis=0, method="weibull")
    return low, high


def _groups(prompts: Sequence[Hashable]) -> list[np.ndarray]:
    places: dict[Hashable, list[int]] = {}
    for i, prompt in enumerate(prompts):
        places.setdefault(prompt, []).append(i)
    return [np.array(rows) for rows in places.values()]


def _judged(result, prompts):
    """Return the results that are not NaN, and their prompts."""
    result = np.asarray(result, np.float64)
    judged = np.flatnonzero(~np.isnan(result))
    if not len(judged):
        raise ValueError(f"The judge gave no verdict on any of {len(result)} prompts.")
    prompts = range(len(result)) if prompts is None else prompts
    return result[judged], [prompts[i] for i in judged]
