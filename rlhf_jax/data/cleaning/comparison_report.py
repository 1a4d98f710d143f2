"""The report of the cleaning of comparisons: tables for the terminal, Markdown and
JSON, and a plot of the difference in length before and after balancing."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from rlhf_jax.data.cleaning.annotator_quality import Annotators, Share
from rlhf_jax.data.cleaning.length_balance import Balance
from rlhf_jax.files import write_text, writing_whole
from rlhf_jax.terminal import print_table

SHOWN = 20  # number of a table's rows in the terminal; the report has all
PLOT = "length_difference.png"


def funnel_rows(count: int, dropped: dict[str, int], out: dict[str, int]) -> list[dict]:
    """Return a row for the input, each reason of dropping, and each output, with their
    shares of the input."""
    steps = [("in", count), *((f"dropped: {why}", n) for why, n in dropped.items())]
    steps += list(out.items())
    return [
        {"step": step, "comparisons": n, "share": n / max(1, count)}
        for step, n in steps
    ]


def annotator_rows(annotators: Annotators) -> list[dict]:
    """Return a row for each annotator, removed ones first, then by name."""

    def share(of: Share, i: int) -> dict | None:
        if of.of[i] == 0:
            return None
        counts = {"count": int(of.count[i]), "of": int(of.of[i])}
        return counts | {"low": float(of.low[i]), "high": float(of.high[i])}

    order = np.argsort(~annotators.careless, kind="stable")
    return [
        {
            "annotator": annotators.names[i],
            "votes": int(annotators.votes[i]),
            "known answers right": share(annotators.known_right, i),
            "repeats contradicted": share(annotators.contradicted, i),
            "kappa": _number(annotators.kappa[i]),
            "first shown chosen": share(annotators.first_chosen, i),
            "longer chosen": share(annotators.longer_chosen, i),
            "out": bool(annotators.careless[i]),
        }
        for i in order.tolist()
    ]


def bucket_rows(balance: Balance, width: int) -> list[dict]:
    """Return a row for each bucket of the length balancing that holds a pair."""
    columns = zip(
        balance.bucket, balance.longer, balance.shorter, balance.kept, strict=True
    )
    return [
        {
            "tokens": f"{low} to {low + width - 1}",
            "better is longer": int(longer),
            "better is shorter": int(shorter),
            "kept of each": int(kept),
        }
        for low, longer, shorter, kept in columns
        if longer or shorter
    ]


def length_bias(longer: np.ndarray) -> dict:
    """Measure how often the better response is the longer; `longer` is the difference
    of lengths, better minus worse, in tokens."""
    unequal = int((longer != 0).sum())
    return {
        "pairs": len(longer),
        "equal": len(longer) - unequal,
        "longer_is_better": _number((longer > 0).sum() / unequal if unequal else None),
        "mean_difference": _number(longer.mean() if len(longer) else None),
    }


def write(
    folder: Path,
    tables: dict[str, list[dict]],
    kappa: dict[str, float],
    alpha: dict[str, float],
    difference: np.ndarray,
    kept: np.ndarray,
) -> None:
    """Print the tables, and write report.json, report.md and the plot into `folder`.

    Args:
        tables: rows by title.
        kappa: Cohen's kappa of votes with the others' majority, by group of votes.
        alpha: Krippendorff's alpha, by group of votes.
        difference: better minus worse length of every cleaned pair, in tokens.
        kept: bool, True for the pairs that length balancing keeps.
    """
    length = {
        "cleaned": length_bias(difference),
        "balanced": length_bias(difference[kept]),
    }
    agreements = {
        "kappa": {name: _number(value) for name, value in kappa.items()},
        "alpha": {name: _number(value) for name, value in alpha.items()},
    }
    report = {title.lower(): rows for title, rows in tables.items()}
    report |= {**agreements, "length": length}
    write_text(folder / "report.json", json.dumps(report, indent=2, ensure_ascii=False))

    lines = [
        f"Of {n['pairs']:,} {name} pairs, {n['equal']:,} are equal in length; of the "
        f"others, the longer is better in {n['longer_is_better']:.1%}."
        for name, n in length.items()
        if n["longer_is_better"] is not None
    ]
    titles = {
        "kappa": "Cohen's kappa of a vote with the others' majority",
        "alpha": "Krippendorff's alpha",
    }
    for name, groups in agreements.items():
        if None not in groups.values():
            values = ", ".join(f"{x:.2f} {group}" for group, x in groups.items())
            lines.append(f"{titles[name]}: {values}.")
    parts = [markdown(title, rows) for title, rows in tables.items() if rows]
    parts += [*(f"{line}\n" for line in lines), f"![Difference in length]({PLOT})\n"]
    write_text(folder / "report.md", "\n".join(parts))
    plot_differences(difference, difference[kept], folder / PLOT)

    for title, rows in tables.items():
        print_rows(title, rows)
    print(*lines, f"Report and plot: {folder / 'report.md'}", sep="\n")


def print_rows(title: str, rows: Sequence[dict]) -> None:
    """Print a table, at most its first `SHOWN` rows."""
    if not rows:
        return
    cells = [[_cell(row, name) for name in rows[0]] for row in rows[:SHOWN]]
    print_table(title, list(rows[0]), cells)
    if len(rows) > SHOWN:
        print(f"... and {len(rows) - SHOWN} more rows in report.md")


def markdown(title: str, rows: Sequence[dict]) -> str:
    names = list(rows[0])
    lines = [f"## {title}", "", _line(names), _line(["---"] * len(names))]
    lines += [_line([_cell(row, name) for name in names]) for row in rows]
    return "\n".join(lines) + "\n"


def plot_differences(before: np.ndarray, after: np.ndarray, path: Path) -> None:
    """Plot histograms of the difference in length, better minus worse, in tokens."""
    reach = int(np.quantile(np.abs(before), 0.99))
    bar = 2 * (reach // 80) + 1  # tokens a bar; odd, so that the middle bar is centred
    bars = max(5, math.ceil(reach / bar))
    edges = bar * (np.arange(-bars, bars + 2) - 0.5)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for difference, name, color in (
        (before, "cleaned", "sandybrown"),
        (after, "balanced", "steelblue"),
    ):
        bias = length_bias(difference)["longer_is_better"]
        share = "" if bias is None else f", the longer is better in {bias:.1%}"
        label = f"{name}: {len(difference):,} pairs{share}"
        axes.hist(difference, edges, color=color, label=label)
    axes.set_xlabel("tokens of the better response minus tokens of the worse")
    axes.set_ylabel("pairs")
    axes.set_title("Difference in length before and after balancing", loc="left")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, -0.15))
    axes.spines[["top", "right"]].set_visible(False)
    with writing_whole(path, "wb") as file:
        figure.savefig(file, dpi=130)


def _cell(row: dict, name: str) -> str:
    value = row[name]
    if value is None:
        return ""
    if isinstance(value, dict):  # a share with its interval
        share = value["count"] / value["of"]
        low, high = 100 * value["low"], 100 * value["high"]
        return f"{share:.0%} [{low:.0f}, {high:.0f}] of {value['of']}"
    if isinstance(value, bool):
        return "out" if value else ""
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.1%}" if name == "share" else f"{value:.2f}"
    return " ".join(value.split())


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)
