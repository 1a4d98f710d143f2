"""Claims over many worlds: effects, their intervals and tests, and verdicts.

Runs are compared world by world, so the numbers of a claim are paired differences, one
a world. Each claim predicts that the mean difference lies "above" or "below" a bound,
or "within" it on both sides of 0. Its test is Student's t, one-sided; the verdicts of
several claims together are Holm's at 0.025 on either side, so that with probability
0.95 no claim is wrongly held or wrongly reversed.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.025  # of a one-sided test
POWER = 0.8  # of the effect that a claim "could have shown"

Expected = Literal["above", "below", "within"]
Verdict = Literal["holds", "not shown", "the opposite"]


class Effect(NamedTuple):
    """The mean difference over worlds and its 95 % interval."""

    mean: float
    low: float
    high: float
    values: tuple[float, ...]  # the difference of each world

    @classmethod
    def of(cls, values) -> "Effect":
        """Return the mean of the differences, one per world, with its interval.

        Raises:
            ValueError: there are fewer than two worlds, which have no interval.
        """
        values = np.asarray(values, np.float64)
        if values.ndim != 1 or len(values) < 2:
            raise ValueError(f"An interval needs two seeds or more, not {values.size}.")
        mean, error = float(values.mean()), float(stats.sem(values))
        half = float(stats.t.ppf(0.975, len(values) - 1)) * error
        return cls(mean, mean - half, mean + half, tuple(map(float, values)))

    def __str__(self) -> str:
        return f"{self.mean:+.3g} [{self.low:+.3g}, {self.high:+.3g}]"


class PValues(NamedTuple):
    """The one-sided p-values of an effect: that chance alone would put the mean so far
    on the expected side of the bound, and so far on the other side."""

    expected: float
    opposite: float


def t_test(values: Sequence[float], expected: Expected, bound: float) -> PValues:
    """Return Student's p-values of differences, one a world, at least two.

    "within" is the two one-sided tests of equivalence (Schuirmann 1987): the larger
    p-value of "above -bound" and "below bound"; the opposite is the smaller one of
    "below -bound" and "above bound".
    """
    return _sided(values, expected, bound, _t_above)


def sign_flip(values: Sequence[float], expected: Expected, bound: float) -> PValues:
    """Return the exact p-values of the sign-flip test, which supposes symmetry about
    the bound and nothing else: the share of all choices of signs whose mean lies as far
    on a side. The least p-value of N worlds is 1 / 2**N.
    """
    return _sided(values, expected, bound, _flips_above)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values adjusted for their number (Holm 1979): those at most LEVEL
    are shown together at that level."""
    order = np.argsort(p_values)
    adjusted = np.empty(len(p_values))
    remaining = len(p_values) - np.arange(len(p_values))
    steps = np.maximum.accumulate(np.asarray(p_values)[order] * remaining)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted.tolist()


def verdicts(tests: Sequence[PValues]) -> list[Verdict]:
    """Return the verdict of each claim: "holds" where Holm's adjusted p-value of the
    expected side is at most LEVEL, "the opposite" where that of the other side is."""
    found: list[Verdict] = []
    for expected, opposite in zip(
        holm([test.expected for test in tests]),
        holm([test.opposite for test in tests]),
        strict=True,
    ):
        if expected <= LEVEL:
            found.append("holds")
        else:
            found.append("the opposite" if opposite <= LEVEL else "not shown")
    return found


def detectable(effect: Effect, level: float) -> float:
    """Return the distance of a mean from its bound that as many worlds, as different as
    these, would have shown with probability POWER at a one-sided level."""
    freedom = len(effect.values) - 1
    quantiles = stats.t.ppf([1 - level, POWER], freedom)
    return float(quantiles.sum() * stats.sem(effect.values))


def _sided(values, expected: Expected, bound: float, above) -> PValues:
    """Return the p-values of a test `above(values)`: that the mean is above 0."""
    values = np.asarray(values, np.float64)
    if expected == "within":
        over_low, under_low = above(values + bound), above(-bound - values)
        under_high, over_high = above(bound - values), above(values - bound)
        return PValues(max(over_low, under_high), min(under_low, over_high))
    over, under = above(values - bound), above(bound - values)
    return PValues(over, under) if expected == "above" else PValues(under, over)


def _t_above(values: np.ndarray) -> float:
    if not np.ptp(values):  # worlds that are all alike
        return float(values[0] <= 0)
    return float(stats.ttest_1samp(values, 0.0, alternative="greater").pvalue)


def _flips_above(values: np.ndarray) -> float:
    test = stats.permutation_test(
        (values,),
        np.mean,
        permutation_type="samples",  # of one sample: flips of signs
        n_resamples=np.inf,  # every choice once
        alternative="greater",
    )
    return float(test.pvalue)
