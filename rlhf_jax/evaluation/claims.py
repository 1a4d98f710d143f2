"""Claims over many seeds: an effect, its interval, and whether the claim holds.

Runs are compared seed by seed (each seed has its own world and annotators), so the
interval is Student's t over the paired differences.
"""

from typing import Literal, NamedTuple

import numpy as np
from scipy import stats


class Effect(NamedTuple):
    """The mean difference over seeds and its 95 % interval."""

    mean: float
    low: float
    high: float
    values: tuple[float, ...]  # the difference of each seed

    @classmethod
    def of(cls, values) -> "Effect":
        """Return the mean of the differences, one per seed, with its interval.

        Raises:
            ValueError: there are fewer than two seeds, which have no interval.
        """
        values = np.asarray(values, np.float64)
        if values.ndim != 1 or len(values) < 2:
            raise ValueError(f"An interval needs two seeds or more, not {values.size}.")
        mean, error = float(values.mean()), float(stats.sem(values))
        half = float(stats.t.ppf(0.975, len(values) - 1)) * error
        return cls(mean, mean - half, mean + half, tuple(map(float, values)))

    def __str__(self) -> str:
        return f"{self.mean:+.3g} [{self.low:+.3g}, {self.high:+.3g}]"


Verdict = Literal["holds", "not shown", "the opposite"]


def verdict(
    effect: Effect, expected: Literal["above", "below"], bound: float = 0.0
) -> Verdict:
    """Return "holds" if the whole interval lies on the expected side of `bound`.

    For "no loss of more than x", expect "above" with the bound -x.
    """
    sides = {"above": effect.low > bound, "below": effect.high < bound}
    others = {"above": effect.high < bound, "below": effect.low > bound}
    if sides[expected]:
        return "holds"
    return "the opposite" if others[expected] else "not shown"
