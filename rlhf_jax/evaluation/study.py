"""A study: claims, what each of them measures, and its numbers in every world.

Configs such as configs/paper.py hold the claims. They are written down before the runs:
a prediction, one primary measure, which alone has a verdict, and what else is shown.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rlhf_jax.evaluation.claims import (
    LEVEL,
    Effect,
    Expected,
    detectable,
    holm,
    sign_flip,
    t_test,
    verdicts,
)
from rlhf_jax.training.metrics import read_metrics
from rlhf_jax.training.workdir import is_finished, read_summary


class UnfinishedError(Exception):
    """A run of a world that a measure needs is not done."""


class World:
    """The finished runs of one world, each in its folder."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._summary = functools.cache(self._read_summary)

    def number(self, where: str) -> float:
        """Return the number of a summary that "run:key.key" names.

        Raises:
            UnfinishedError: the run is not done.
            KeyError: its summary has no such number.
        """
        run, _, keys = where.partition(":")
        tree: Any = self._summary(run)
        return float(functools.reduce(dict.__getitem__, keys.split("."), tree))

    def series(self, run: str, key: str) -> np.ndarray:
        """Return the values [N] of a metric in the order of the steps that have it."""
        self._summary(run)
        lines = read_metrics(self._folder / run)
        return np.array([line[key] for line in lines if key in line], np.float64)

    def _read_summary(self, run: str) -> dict:
        if not is_finished(self._folder / run):
            raise UnfinishedError(run)
        return read_summary(self._folder / run)


# A number of a world: "run:key.key" of a summary, or a function.
Quantity = str | Callable[[World], float]


class Measure(NamedTuple):
    """The difference of two numbers, world by world.

    The mean difference is expected "above" or "below" `bound`, or "within" it on both
    sides of 0. Without `theirs`, `ours` itself is the difference.
    """

    text: str
    ours: Quantity
    theirs: Quantity | None = None
    expected: Expected = "above"
    bound: float = 0.0


class Claim(NamedTuple):
    """A claim that runs can show, with all that was fixed before they began.

    Attributes:
        runs: the runs that it needs besides those that they start from.
        policies: the runs that are evaluated together, against SFT.
        primary: the measure that decides.
        others: what else the claim is about, without verdicts.
        checks: manipulation checks, which follow from what was changed: they show that
            the change was made, and are no evidence for the claim.
    """

    number: int
    title: str
    prediction: str
    primary: Measure
    runs: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()
    others: tuple[Measure, ...] = ()
    checks: tuple[Measure, ...] = ()


def results(
    claims: Sequence[Claim], worlds: Sequence[World], *, with_verdicts: bool
) -> list[dict]:
    """Return what the worlds say of each claim, as trees for JSON; claims whose primary
    measure has fewer than two finished worlds are left out.

    Args:
        with_verdicts: tests the claims; p-values and verdicts are left out otherwise.
    """

    def shown(measures: Sequence[Measure]) -> list[dict]:
        return list(filter(None, (compare(measure, worlds) for measure in measures)))

    rows = []
    for claim in claims:
        primary = compare(claim.primary, worlds)
        if primary is None:
            continue
        rows.append(
            {
                "claim": claim.number,
                "title": claim.title,
                "prediction": claim.prediction,
                "primary": primary,
                "others": shown(claim.others),
                "checks": shown(claim.checks),
            }
        )
    if with_verdicts:
        _judge(rows)
    return rows


def compare(measure: Measure, worlds: Sequence[World]) -> dict | None:
    """Return the effect of a measure over the worlds whose runs are done; None if there
    are fewer than two."""
    pairs = []
    for world in worlds:
        try:
            ours = _number(measure.ours, world)
            pairs.append((ours, _number(measure.theirs, world)))
        except UnfinishedError:
            continue
    if len(pairs) < 2:
        return None
    ours, theirs = np.transpose(pairs)
    return {
        "text": measure.text,
        "ours": float(ours.mean()),
        "theirs": None if measure.theirs is None else float(theirs.mean()),
        "effect": Effect.of(ours - theirs)._asdict(),
        "expected": measure.expected,
        "bound": measure.bound,
    }


def _judge(rows: list[dict]) -> None:
    """Add to the primary measures their p-values, as they are and adjusted for the
    number of claims, the verdicts, and what those not shown could have shown."""
    primaries = [row["primary"] for row in rows]
    asked = [
        (row["effect"]["values"], row["expected"], row["bound"]) for row in primaries
    ]
    tests = [t_test(*values) for values in asked]
    adjusted = holm([test.expected for test in tests])
    found = verdicts(tests)
    level = LEVEL / max(sum(verdict != "holds" for verdict in found), 1)
    for i, row in enumerate(primaries):
        row |= {
            "p": tests[i].expected,
            "p_sign_flip": sign_flip(*asked[i]).expected,
            "p_holm": adjusted[i],
            "verdict": found[i],
            "detectable": detectable(Effect(**row["effect"]), level),
        }


def _number(quantity: Quantity | None, world: World) -> float:
    if quantity is None:
        return 0.0
    return quantity(world) if callable(quantity) else world.number(quantity)
