"""Tables of benchmarks/human_rewards.py, and its predictions.

A model is right on a pair if chosen scores above rejected, half right at equal scores.
Intervals are of 95 %, by the bootstrap over conversations; p-values are McNemar's, on
the pairs of the set that arms are trained on, each of which was judged once by a model
that never saw its conversation.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rlhf_jax.data.cleaning.comparison_report import markdown
from rlhf_jax.data.cleaning.length_balance import length_balance
from rlhf_jax.evaluation.intervals import half_right, mcnemar
from rlhf_jax.evaluation.preferences import correlations
from rlhf_jax.evaluation.win_rate import interval
from rlhf_jax.files import write_json, write_text

BUCKET = 10  # words, the width of a bucket of length balancing
STRATA = "hh, mean of the two"
ADVERSARIAL = "LLMBar adversarial"


class Prediction(NamedTuple):
    """A statement made before the run: the accuracy of a variant, or its difference to
    another's, lies between two bounds."""

    text: str
    variant: str
    other: str  # "" predicts the accuracy itself
    test: str
    low: float
    high: float


# Written on 2026-11-27, before any arm with a pretrained model was run.
PREDICTIONS = [
    prediction
    for arm in ("frozen", "trained")
    for prediction in (
        Prediction(
            f"{arm}: 61 to 65 % of hh", f"{arm}-plain-0.01", "", "hh", 0.61, 0.65
        ),
        Prediction(
            f"{arm}: 4 points or more above a bag of words on hh",
            f"{arm}-plain-0.01",
            "bag-plain",
            "hh",
            0.04,
            1.0,
        ),
        Prediction(
            f"{arm}: balancing costs at most 4 points of hh",
            f"{arm}-balanced-0.01",
            f"{arm}-plain-0.01",
            "hh",
            -0.04,
            0.0,
        ),
        Prediction(
            f"{arm}: balancing gains 3 points or more on the mean of hh's strata",
            f"{arm}-balanced-0.01",
            f"{arm}-plain-0.01",
            STRATA,
            0.03,
            1.0,
        ),
        Prediction(
            f"{arm}: balancing gains 10 points or more on LLMBar adversarial",
            f"{arm}-balanced-0.01",
            f"{arm}-plain-0.01",
            ADVERSARIAL,
            0.1,
            1.0,
        ),
    )
]


def tests_of(data) -> dict[str, list[np.ndarray]]:
    """Return the groups of rows, bool [N] each, of every test. The accuracy of a test
    is the mean of its groups' accuracies."""
    difference = np.subtract(*data.lengths.T)
    own, name = data.is_own, str(data.sets[0])
    balanced = np.zeros(len(own), bool)
    better, worse = data.lengths[own].T
    balanced[own] = length_balance(better, worse, width=BUCKET, seed=0).keep
    longer, shorter = own & (difference > 0), own & (difference < 0)
    tests = {
        name: [own],
        f"{name}, better is longer": [longer],
        f"{name}, better is shorter": [shorter],
        f"{name}, mean of the two": [longer, shorter],
        f"{name} balanced": [balanced],
    }
    others = list(dict.fromkeys(data.sets.tolist()))[1:]
    return tests | {other: [data.sets == other] for other in others}


def accuracy(
    right: np.ndarray, groups: Sequence[np.ndarray], conversation: np.ndarray
) -> dict[str, float] | None:
    """Return the mean over groups of the mean of `right` over their judged rows, with
    its interval over conversations; None where a group has no judged row.

    Args:
        right: float [N], a share or a difference of shares; NaN where not judged.
    """
    judged = ~np.isnan(right)
    masks = np.array([group & judged for group in groups])
    if not masks.any(axis=1).all():
        return None
    index = np.unique(conversation, return_inverse=True)[1]
    size = index.max() + 1
    values = np.where(judged, right, 0.0)
    sums = np.array([np.bincount(index, values * mask, size) for mask in masks])
    counts = np.array([np.bincount(index, mask, size) for mask in masks])
    present = counts.any(axis=0)
    sums, counts = sums[:, present].T, counts[:, present].T

    def mean(rows: np.ndarray) -> float:
        return float((sums[rows].sum(0) / np.maximum(counts[rows].sum(0), 1)).mean())

    low, high = interval(mean, len(sums), seed=0)
    value = mean(np.arange(len(sums)))
    numbers = {"value": value, "low": float(low), "high": float(high)}
    return numbers | {"pairs": int(masks.any(axis=0).sum())}


def summarise(data, margins: dict[str, np.ndarray]) -> dict:
    """Return the results of the variants as a tree for JSON.

    Args:
        margins: float [folds, N] by variant, NaN where a fold's model did not judge.
    """
    tests, where = tests_of(data), data.conversation
    right = {name: _mean(half_right(folds)) for name, folds in margins.items()}
    difference = np.subtract(*data.lengths.T)
    variants = {}
    for name, folds in margins.items():
        own = np.flatnonzero(data.is_own & ~np.isnan(right[name]))
        margin = _mean(folds)[own]
        score, lengths = (
            np.stack([x, 0 * x], axis=1) for x in (margin, difference[own])
        )
        variants[name] = {
            "folds": len(folds),
            "length_correlation": correlations(score, lengths)["within_pairs"],
            "tests": {
                test: accuracy(right[name], groups, where)
                for test, groups in tests.items()
            },
        }
    contrasts = [
        {"variant": a, "other": b, "test": test, **_contrast(right, a, b, test, data)}
        for a, b in contrasts_of(list(margins))
        for test in tests
        if ", better is" not in test  # their mean is compared
    ]
    is_english = "hh" in tests
    return {
        "pairs": {test: int(np.any(g, axis=0).sum()) for test, g in tests.items()},
        "variants": variants,
        "contrasts": contrasts,
        "predictions": [_verdict(p, right, data) for p in PREDICTIONS if is_english],
    }


def contrasts_of(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs of variants to compare: each plain one with the bag of words,
    each balanced one with the plain one, and weight 0.01 of the regularisation with 0.
    """
    pairs = [(name, "bag-plain") for name in names if "-plain" in name]
    pairs += [(name, name.replace("-balanced", "-plain")) for name in names]
    pairs += [(name, name.removesuffix("0.01") + "0") for name in names]
    return [(a, b) for a, b in pairs if a != b and {a, b} <= set(names)]


def _mean(folds: np.ndarray) -> np.ndarray:
    """Return the mean over the folds that judged a row, NaN where none did."""
    judged = ~np.isnan(folds)
    total = np.where(judged, folds, 0.0).sum(axis=0)
    count = judged.sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _contrast(right, a: str, b: str, test: str, data) -> dict:
    """Return the difference of two variants on a test, with McNemar's p on the set
    that the arms are trained on."""
    groups = tests_of(data)[test]
    numbers = accuracy(right[a] - right[b], groups, data.conversation) or {}
    if test == data.sets[0] and numbers:
        both = groups[0] & ~np.isnan(right[a] - right[b])
        numbers["p"] = mcnemar(right[a][both], right[b][both])
    return numbers


def verdict(low: float, high: float, measured: dict[str, float]) -> str:
    """Judge a prediction of a value between two bounds: "shown" if the whole interval
    measured lies within the bounds, "refuted" if it lies outside, else whether the
    value is within."""
    if low <= measured["low"] and measured["high"] <= high:
        return "shown"
    if measured["high"] < low or high < measured["low"]:
        return "refuted"
    is_within = low <= measured["value"] <= high
    return "as predicted, uncertain" if is_within else "not so, uncertain"


def _verdict(prediction: Prediction, right: dict, data) -> dict:
    """Return a prediction with what was measured."""
    p, record = prediction, prediction._asdict()
    if not {p.variant, p.other} - {""} <= set(right):
        return record | {"verdict": "not measured"}
    values = right[p.variant] - (right[p.other] if p.other else 0.0)
    measured = accuracy(values, tests_of(data)[p.test], data.conversation)
    if measured is None:
        return record | {"verdict": "not measured"}
    return record | {"measured": measured, "verdict": verdict(p.low, p.high, measured)}


def page(results: dict) -> str:
    """Return the results as a page of tables."""
    rows = [
        {"arm": name, "folds": variant["folds"]}
        | {test: _cell(numbers) for test, numbers in variant["tests"].items()}
        | {"margin and length": f"{variant['length_correlation']:.2f}"}
        for name, variant in results["variants"].items()
    ]
    contrasts = [
        {
            "arm": row["variant"],
            "minus": row["other"],
            "test": row["test"],
            "points": _cell(row, signed=True),
            "McNemar's p": _p(row.get("p")),
        }
        for row in results["contrasts"]
        if "value" in row
    ]
    predictions = [
        {
            "prediction": row["text"],
            "measured": _cell(row.get("measured"), signed=bool(row["other"])),
            "verdict": row["verdict"],
        }
        for row in results["predictions"]
    ]
    counts = ", ".join(f"{test} {n:,}" for test, n in results["pairs"].items())
    return "\n".join(
        [
            "# Reward models on people's preferences\n",
            "`python -m benchmarks.human_rewards`, whose docstring explains the arms. "
            "Accuracy in %, with 95 % intervals over conversations. Arms are trained "
            "on the first set alone and cross-fitted by conversation; the other sets "
            "are judged by the folds' models, whose results are averaged. Names of "
            "arms end with the weight of the squared scores in the loss. Pairs: "
            f"{counts}.\n",
            markdown("Accuracy", rows) if rows else "Nothing is measured yet.\n",
            markdown("Differences", contrasts) if contrasts else "",
            markdown("Predictions, written before the run", predictions)
            if predictions
            else "",
        ]
    )


def _cell(numbers: dict | None, *, signed: bool = False) -> str:
    if not numbers:
        return ""
    value, low, high = (100 * numbers[x] for x in ("value", "low", "high"))
    sign = "+" if signed else ""
    return f"{value:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


def _p(p: float | None) -> str:
    return "" if p is None else f"{p:.2g}"


def write(path: Path, data, margins: dict[str, np.ndarray]) -> None:
    """Write the results to `path` with the endings .json and .md, and print them."""
    results = summarise(data, margins)
    write_json(path.with_suffix(".json"), results)
    write_text(path.with_suffix(".md"), page(results))
    print(page(results))
