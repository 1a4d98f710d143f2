"""The report of a reward model: report.md, with tables and a reliability plot.

report.json holds the same numbers, errors.jsonl the pairs with the largest errors.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from rlhf_jax.data.records import Comparison
from rlhf_jax.files import write_json, write_text, writing_whole

NUM_ERRORS = 50  # pairs in errors.jsonl
NUM_SHOWN = 10  # pairs of errors.jsonl that report.md shows
SHOWN_CHARACTERS = 300  # characters of each text in report.md


def write_report(
    folder: Path,
    report: dict,
    scores: np.ndarray,
    comparisons: Sequence[Comparison],
) -> None:
    """Write report.json, report.md, reliability.png and errors.jsonl into `folder`.

    Args:
        report: from `preferences.assess`.
        scores: float [N, 2] of chosen and rejected.
    """
    errors = worst_errors(scores, comparisons)
    write_json(folder / "report.json", report)
    write_text(folder / "report.md", markdown(report, errors))
    plot_reliability(report["calibration"], folder / "reliability.png")
    with writing_whole(folder / "errors.jsonl") as file:
        for error in errors:
            file.write(json.dumps(error, ensure_ascii=False) + "\n")


def worst_errors(scores: np.ndarray, comparisons: Sequence[Comparison]) -> list[dict]:
    """Return the wrongly ordered pairs, the largest difference of scores first."""
    margins = scores[:, 0] - scores[:, 1]
    worst = [i for i in np.argsort(margins, kind="stable") if margins[i] < 0]
    return [
        {
            "chosen_score": float(scores[i, 0]),
            "rejected_score": float(scores[i, 1]),
            "intent": comparisons[i].prompt.intent,
            "prompt": comparisons[i].prompt.messages[-1]["content"],
            "chosen": comparisons[i].chosen,
            "rejected": comparisons[i].rejected,
        }
        for i in worst[:NUM_ERRORS]
    ]


def markdown(report: dict, errors: list[dict]) -> str:
    """Return the report as tables, with the baselines beside every accuracy."""
    measured = ("accuracy", "accuracy_low", "accuracy_high", "pairs")
    rivals = [key for key in report["accuracy"]["all"] if key not in measured]
    header = ["pairs", "n", "accuracy [95 %]", *(r.replace("_", " ") for r in rivals)]
    rows = [
        [group, row["pairs"], _with_interval(row), *(f"{row[r]:.1%}" for r in rivals)]
        for group, row in report["accuracy"].items()
    ]
    scores, length = report["scores"], report["length_correlation"]
    facts = [
        ["score of chosen, mean (spread)", _spread(scores, "chosen_")],
        ["score of rejected, mean (spread)", _spread(scores, "rejected_")],
        ["score of all, mean (spread)", _spread(scores, "")],
        ["correlation of score and length", f"{length['responses']:.3f}"],
        ["the same inside pairs", f"{length['within_pairs']:.3f}"],
        [
            "expected calibration error",
            f"{report['calibration']['expected_error']:.3f}",
        ],
    ]
    if "truth" in report:
        truth = report["truth"]
        facts += [
            ["pairs ordered as true quality does", _with_interval(truth)],
            [
                "correlation of score and quality",
                f"{truth['correlation']['responses']:.3f}",
            ],
            [
                "correlation of quality and length",
                f"{truth['length_correlation']['responses']:.3f}",
            ],
        ]
    shown = [
        [f"{e['chosen_score']:.2f} < {e['rejected_score']:.2f}"]
        + [_cell(e[key]) for key in ("prompt", "chosen", "rejected")]
        for e in errors[:NUM_SHOWN]
    ]
    return "\n".join(
        [
            "# The reward model on held-out pairs\n",
            _table(header, rows),
            _table(["", "value"], facts),
            "![Reliability](reliability.png)\n",
            "## The worst errors\n",
            _table(["scores", "prompt", "chosen", "rejected"], shown),
        ]
    )


def plot_reliability(calibration: dict, path: Path) -> None:
    """Plot accuracy against confidence with 95 % intervals, above the number of
    pairs."""
    bins = calibration["bins"]
    confidence, accuracy, pairs = (
        np.array([b[key] for b in bins]) for key in ("confidence", "accuracy", "pairs")
    )
    low, high = np.transpose([[b["accuracy_low"], b["accuracy_high"]] for b in bins])
    figure = Figure(figsize=(4.5, 5.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0.5, 1], [0.5, 1], color="grey", linestyle="--", label="calibrated")
    above.errorbar(
        confidence, accuracy, (accuracy - low, high - accuracy), fmt="o-", capsize=3
    )
    above.set_ylabel("accuracy")
    above.set_title(f"expected calibration error {calibration['expected_error']:.3f}")
    above.legend()
    below.bar(confidence, pairs, width=0.03)
    below.set_xlabel("confidence: sigmoid of the difference of scores")
    below.set_ylabel("pairs")
    with writing_whole(path, "wb") as file:
        figure.savefig(file, dpi=120)


def _with_interval(row: dict) -> str:
    low, high = row["accuracy_low"], row["accuracy_high"]
    return f"{row['accuracy']:.1%} [{low:.1%}, {high:.1%}], n = {row['pairs']}"


def _spread(scores: dict, side: str) -> str:
    return f"{scores[side + 'mean']:.3f} ({scores[side + 'std']:.3f})"


def _cell(text: str) -> str:
    text = " ".join(text.replace("|", "\\|").split())
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + " ..."


def _table(header: list, rows: list[list]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)
