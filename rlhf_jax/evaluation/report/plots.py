"""Plots of runs: on a page as SVG that follows its light or dark colours, or as files.

Each `draw_...` fills the axes that it is given; `inline` and `save` make them.
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

# Told apart on white and on black, also by the colour-blind (after Okabe and Ito).
COLOURS = (
    "#3B82F6", "#E8871E", "#1FA774", "#A56BDB",
    "#E0524D", "#12A5B8", "#A9744F", "#D9669B",
)  # fmt: skip
DASHES = ("-", "--", ":", "-.")
MAX_POINTS = 150  # of a curve; more are averaged in bins
SPEED_POINTS = 24  # of a curve that measures the machine
# Stand for what the page decides; no plot has these colours otherwise.
TEXT, LINE = "#010203", "#040506"
STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a folder may be called $x
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
    """Values of one or more seeds at shared steps; `low` and `high` bound them."""

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
    """The mean of several seeds' (x, y) with the lowest and highest as its band; None
    where there is nothing. As far as the shortest goes; where their x differ (an epoch
    is not equally long in all), they are matched in order.

    Args:
        points: so many at most; of more, neighbours are put together.
        middle: how, np.mean or np.median.
    """
    seeds = [points for points in seeds if points]
    if not seeds:
        return None
    known = [dict(points) for points in seeds]
    shared = sorted(set.intersection(*map(set, known)))
    if len(shared) == min(map(len, known)):
        x = np.array(shared, np.float64)
        y = np.array([[points[i] for i in shared] for points in known], np.float64)
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
    """The metric step by step, a curve for every group that has it. Of what the machine
    decides medians: a step that compiles or is followed by a save is no speed."""
    way = {}
    if metric.startswith(MEASURED):
        way = {"points": SPEED_POINTS, "middle": np.median}
    found = [
        curve(
            [run.series(metric) for run in group.runs],
            colour=colours[group.label],
            label=group.label,
            **way,
        )
        for group in groups
    ]
    return [curve for curve in found if curve is not None]


def draw_curves(axes: Axes, curves: Sequence[Curve], *, title: str, x: str) -> None:
    for found in curves:
        style = {
            "color": colour(found.colour),
            "linestyle": DASHES[found.colour // len(COLOURS) % len(DASHES)],
            "label": found.label,
            "marker": "o" if len(found.x) < 12 else None,
            "markersize": 3.5,
        }
        axes.plot(found.x, found.mean, **style)
        if (found.high > found.low).any():
            axes.fill_between(
                found.x,
                found.low,
                found.high,
                color=style["color"],
                alpha=0.18,
                linewidth=0,
            )
    axes.set_title(title)
    axes.set_xlabel(x)
    if max(found.mean.max() for found in curves) >= 10_000:
        axes.yaxis.set_major_formatter("{x:,.0f}")


class Point(NamedTuple):
    """A model at its distance from the reference, and what the judge says of it."""

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
    """Accuracy against confidence with 95 % intervals.

    Args:
        reports: label -> colour and what `calibration.reliability` returns.
    """
    axes.plot([0.5, 1], [0.5, 1], "--", color="#888888", linewidth=1)
    for label, (number, calibration) in reports.items():
        bins = calibration["bins"]
        accuracy = np.array([b["accuracy"] for b in bins])
        # Reports of earlier versions have no intervals.
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
    """Histograms of tokens, on shared bins.

    Args:
        lengths: label -> colour and tokens of each response.
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
    """Say below the plot, where nothing lies under it, which colour is what."""
    axes.figure.legend(loc="outside lower left", fontsize=8, ncols=2)


Draw = Callable[[Axes], None]


def inline(draw: Draw, *, name: str, size: tuple[float, float] = (4.2, 2.7)) -> str:
    """The plot as an <svg> element; `name` is said to those who cannot see it, and
    keeps its ids apart from other plots'."""
    with mpl.rc_context(STYLE | ON_PAGE | {"svg.hashsalt": name}):
        figure = Figure(size, layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.subplots()
        axes.patch.set_alpha(0)
        draw(axes)
        svg = _svg(figure)
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[a-z0-9]+_\d+"', "", svg)  # axes_1: the same in all plots
    svg = re.sub(r"font: ([\d.]+)px[^;\"]*", r"font-size: \1px", svg)
    svg = svg.replace(TEXT, "currentColor").replace(LINE, "var(--line)")
    return svg.replace("<svg", '<svg role="img"', 1)


def save(draws: Sequence[Draw], path: Path, *, size: tuple[float, float]) -> None:
    """The plots side by side as a file for any background, one legend for all."""
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
