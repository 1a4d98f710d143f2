"""Plots of runs: SVG in a page, with the page's light or dark colours, or files.

Each `draw_...` draws into the given axes; `inline` and `save` make the axes.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_jax.evaluation.intervals import wilson
from rlhf_jax.evaluation.report.runs import Group
from rlhf_jax.files import writing_whole
from rlhf_jax.training.metrics import MEASURED

# Colours that the colour-blind can tell apart, on white and on black (after Okabe and
# Ito).
COLOURS = (
    "#3B82F6", "#E8871E", "#1FA774", "#A56BDB",
    "#E0524D", "#12A5B8", "#A9744F", "#D9669B",
)  # fmt: skip
DASHES = ("-", "--", ":", "-.")
MAX_POINTS = 150  # points of a curve; more points are averaged in bins
SPEED_POINTS = 24  # points of a curve of a metric that depends on the machine
# Placeholders of the page's colours; no plot uses these colours otherwise.
TEXT, LINE = "#010203", "#040506"
STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # the name of a folder may contain $
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}
_INK = (
    "text.color",
    "axes.labelcolor",
    "axes.titlecolor",
    "xtick.color",
    "ytick.color",
)
ON_PAGE = dict.fromkeys(_INK, TEXT) | {"axes.edgecolor": LINE, "grid.color": LINE}
IN_FILE = {"grid.color": "#DDDDDD", "axes.edgecolor": "#999999"}


class Curve(NamedTuple):
    """The mean of one or more seeds at shared steps, between the lowest and highest."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    colour: int = 0
    label: str = ""


def colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]


def curve(
    seeds: Sequence[Sequence[tuple[float, float]]],
    *,
    colour: int,
    label: str,
    points: int = MAX_POINTS,
    middle: Callable = np.mean,
) -> Curve | None:
    """Return the mean of (x, y) over seeds with the lowest and highest as a band; None
    without points. The curve ends with the shortest seed; where the x of seeds differ
    (epochs may differ in length), points are matched in order.

    Args:
        points: the largest number of points; neighbours of more points are combined.
        middle: the function that combines neighbours, np.mean or np.median.
    """
    seeds = [points for points in seeds if points]
    if not seeds:
        return None
    by_step = [dict(points) for points in seeds]
    shared = sorted(set.intersection(*map(set, by_step)))
    if len(shared) == min(map(len, by_step)):
        x = np.array(shared, np.float64)
        y = np.array([[points[i] for i in shared] for points in by_step], np.float64)
    else:
        cut = np.array([points[: min(map(len, seeds))] for points in seeds])
        x, y = cut[..., 0].mean(0), cut[..., 1]
    bins = np.array_split(np.arange(len(x)), min(len(x), points))
    x = np.array([x[rows].mean() for rows in bins])
    y = np.stack([middle(y[:, rows], axis=1) for rows in bins], axis=1)
    return Curve(x, y.mean(0), y.min(0), y.max(0), colour, label)


def group_curves(
    groups: Sequence[Group], metric: str, colours: Mapping[str, int]
) -> list[Curve]:
    """Return the metric step by step, with a curve for every group that has it. Speeds
    are medians, because steps that compile or wait for a save distort a mean."""
    way = {}
    if metric.startswith(MEASURED):
        way = {"points": SPEED_POINTS, "middle": np.median}
    curves = [
        curve(
            [run.series(metric) for run in group.runs],
            colour=colours[group.label],
            label=group.label,
            **way,
        )
        for group in groups
    ]
    return [curve for curve in curves if curve is not None]


def draw_curves(axes: Axes, curves: Sequence[Curve], *, title: str, x: str) -> None:
    for line in curves:
        style = {
            "color": colour(line.colour),
            "linestyle": DASHES[line.colour // len(COLOURS) % len(DASHES)],
            "label": line.label,
            "marker": "o" if len(line.x) < 12 else None,
            "markersize": 3.5,
        }
        axes.plot(line.x, line.mean, **style)
        if (line.high > line.low).any():
            axes.fill_between(
                line.x,
                line.low,
                line.high,
                color=style["color"],
                alpha=0.18,
                linewidth=0,
            )
    axes.set_title(title)
    axes.set_xlabel(x)
    if max(line.mean.max() for line in curves) >= 10_000:
        axes.yaxis.set_major_formatter("{x:,.0f}")


def draw_watch(
    axes: Axes,
    scores: Sequence[Curve],
    judge_scores: Sequence[Curve],
    length: Sequence[Curve],
    warned: Sequence[tuple[float, float, int]],
) -> None:
    """Draw the score that a policy learns from, the judge's and, with an axis of its
    own, the length of the answers.

    Args:
        warned: step, judge's score and colour of each warning of over-optimisation.
    """
    on_the_right = axes.twinx()
    on_the_right.spines["right"].set_visible(True)
    on_the_right.grid(False)
    kinds = (
        (axes, scores, "-", "score learned from"),
        (axes, judge_scores, "--", "judge"),
        (on_the_right, length, ":", "length (right)"),
    )
    for there, curves, style, label in kinds:
        for line in curves:
            there.plot(line.x, line.mean, style, color=colour(line.colour), label=label)
            label = ""
    for number, (x, y, i) in enumerate(warned):
        label = "" if number else "over-optimised"
        axes.plot(x, y, "x", color=colour(i), markersize=7, label=label)
    axes.set(
        title="Over-optimisation, held-out prompts",
        xlabel="step",
        ylabel="SDs above the reference",
    )
    on_the_right.set_ylabel("length over the reference's")
    _name(axes)


class Point(NamedTuple):
    """A model as a point: KL from the reference, and the judge's number."""

    x: float
    y: float
    low: float
    high: float
    colour: int = 0
    label: str = ""


def draw_points(
    axes: Axes, points: Sequence[Point], *, title: str, x: str, y: str
) -> None:
    for point in points:
        axes.errorbar(
            point.x,
            point.y,
            [[point.y - point.low], [point.high - point.y]],
            fmt="o",
            capsize=2.5,
            markersize=5,
            color=colour(point.colour),
            label=point.label,
        )
    axes.margins(x=0.12)
    axes.set(title=title, xlabel=x, ylabel=y)
    _name(axes)


def draw_reliability(
    axes: Axes, reports: Mapping[str, tuple[int, Mapping]], *, title: str
) -> None:
    """Draw accuracy against confidence with 95 % intervals.

    Args:
        reports: label -> colour and result of `calibration.reliability`.
    """
    axes.plot([0.5, 1], [0.5, 1], "--", color="#888888", linewidth=1)
    for label, (number, calibration) in reports.items():
        bins = calibration["bins"]
        accuracy = np.array([b["accuracy"] for b in bins])
        # Reports of earlier versions do not have intervals.
        bounds = np.array(
            [
                (b["accuracy_low"], b["accuracy_high"])
                if "accuracy_low" in b
                else wilson(b["accuracy"], b["pairs"])
                for b in bins
            ]
        ).T
        axes.errorbar(
            [b["confidence"] for b in bins],
            accuracy,
            np.abs(bounds - accuracy),
            fmt="o-",
            capsize=2,
            markersize=3.5,
            linewidth=1.2,
            color=colour(number),
            label=f"{label}: error {calibration['expected_error']:.3f}",
        )
    axes.set(title=title, xlabel="confidence", ylabel="accuracy")
    _name(axes)


def draw_lengths(
    axes: Axes, lengths: Mapping[str, tuple[int, np.ndarray]], *, title: str
) -> None:
    """Draw histograms of response lengths, on shared bins.

    Args:
        lengths: label -> colour and the length of each response in tokens.
    """
    longest = max(values.max() for _, values in lengths.values())
    bins = np.linspace(0, longest + 1, 25)
    for label, (number, values) in lengths.items():
        axes.hist(
            values,
            bins,
            histtype="stepfilled",
            alpha=0.22,
            color=colour(number),
            weights=np.full(len(values), 100 / len(values)),
        )
        axes.hist(
            values,
            bins,
            histtype="step",
            color=colour(number),
            linewidth=1.5,
            weights=np.full(len(values), 100 / len(values)),
            label=f"{label}: mean {values.mean():.1f}",
        )
    axes.set(title=title, xlabel="tokens", ylabel="% of responses")
    _name(axes)


def _name(axes: Axes) -> None:
    """Draw the legend below the plot, where it hides nothing."""
    axes.figure.legend(loc="outside lower left", fontsize=8, ncols=2)


Draw = Callable[[Axes], None]


def inline(draw: Draw, *, name: str, size: tuple[float, float] = (4.2, 2.7)) -> str:
    """Return the plot as an <svg> element; `name` is read to people who cannot see the
    plot, and separates its ids from those of other plots."""
    with mpl.rc_context(STYLE | ON_PAGE | {"svg.hashsalt": name}):
        figure = Figure(size, layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.subplots()
        axes.patch.set_alpha(0)
        draw(axes)
        svg = _svg(figure)
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r' id="[a-z0-9]+_\d+"', "", svg
    )  # ids such as axes_1 are the same in all plots
    svg = re.sub(r"font: ([\d.]+)px[^;\"]*", r"font-size: \1px", svg)
    svg = svg.replace(TEXT, "currentColor").replace(LINE, "var(--line)")
    return svg.replace("<svg", '<svg role="img"', 1)


def save(draws: Sequence[Draw], path: Path, *, size: tuple[float, float]) -> None:
    """Write plots side by side as a file for any background, with one legend for
    all."""
    with mpl.rc_context(STYLE | IN_FILE):
        figure = Figure(size, layout="constrained")
        labelled = {}
        for draw, axes in zip(
            draws, figure.subplots(1, len(draws), squeeze=False)[0], strict=True
        ):
            draw(axes)
            handles, labels = axes.get_legend_handles_labels()
            labelled |= dict(zip(labels, handles, strict=True))
        figure.legend(labelled.values(), labelled, loc="outside right upper")
        with writing_whole(path, "wb") as file:
            figure.savefig(file, dpi=110)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
