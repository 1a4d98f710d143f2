"""Plots of claims over seeds, as files: effects, quality against KL, training."""

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_jax.evaluation.claims import Effect
from rlhf_jax.evaluation.report import plots, tables
from rlhf_jax.evaluation.report.runs import Group
from rlhf_jax.files import writing_whole

VERDICTS = {"holds": "#1FA774", "not shown": "#8A8F98", "the opposite": "#E0524D"}
TRAINING = (
    ("objective/scores", "score of the reward model"),
    ("eval/quality", "true quality, held-out prompts"),
    ("objective/kl", "KL, nats a response"),
    ("response/length_mean", "tokens a response"),
)


def plot_effects(results: Sequence[dict], path: Path) -> None:
    """Plot the difference of every measure with its interval, one row each with its own
    scale; small strokes are seeds, the dashed line is the bound of the claim.

    Args:
        results: the rows of claims.json.
    """
    with mpl.rc_context(plots.STYLE | plots.IN_FILE):
        figure = Figure((9, 0.46 * len(results) + 0.7), layout="constrained")
        rows = figure.subplots(len(results), 1, squeeze=False)[:, 0]
        for axes, row in zip(rows, results, strict=True):
            _draw_effect(axes, row)
        handles = [
            mpl.lines.Line2D([], [], color=c, marker="o", label=name)
            for name, c in VERDICTS.items()
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
        with writing_whole(path, "wb") as file:
            figure.savefig(file, dpi=110)


def _draw_effect(axes: Axes, row: dict) -> None:
    effect, colour = Effect(**row["effect"]), VERDICTS[row["verdict"]]
    seeds = np.zeros(len(effect.values))
    axes.plot(effect.values, seeds, "|", ms=9, mew=1.2, color="#444444", zorder=3)
    axes.plot([effect.low, effect.high], [0, 0], color=colour, linewidth=2.5)
    axes.plot(effect.mean, 0, "o", color=colour, ms=6)
    axes.axvline(row["bound"], linestyle="--", color="#555555", linewidth=1)
    axes.set_ylim(-1, 1)
    axes.set_yticks([])
    axes.margins(x=0.12)
    axes.locator_params(axis="x", nbins=6)
    axes.tick_params(axis="x", labelsize=7, pad=1, length=2)
    axes.spines["left"].set_visible(False)
    axes.grid(False)
    text = f"{row['claim']}  {row['text']}"
    axes.set_ylabel(text, rotation=0, ha="left", va="center", labelpad=330)


def plot_frontier(groups: Sequence[Group], path: Path) -> bool:
    """Plot score and true quality against KL: the course of every PPO run as a mean
    over seeds, and every evaluated policy with 95 % intervals over seeds. Return False
    if there is nothing to draw."""
    models = [m for m in tables.models(groups) if all("quality" in r for r in m.rows)]
    if not models:
        return False
    colours = _colours(groups, models)
    ways = {
        "score of the reward model": ("objective/scores", _score),
        "true quality": ("eval/quality", lambda row: row["quality"]["mean"]),
    }

    def panel(title: str, metric: str, value: Callable[[dict], float | None]):
        def draw(axes: Axes) -> None:
            for group in groups:
                way = _way(group, metric)
                if way is not None:
                    colour = plots.colour(colours[group.label])
                    axes.plot(*way, color=colour, linewidth=1, alpha=0.6)
            for model in models:
                y = [value(row) for row in model.rows]
                if None not in y and all("kl" in row for row in model.rows):
                    _draw_end(axes, model, y, plots.colour(colours[model.label]))
            axes.set(title=title, xlabel="KL, nats a response")

        return draw

    panels = [panel(title, *way) for title, way in ways.items()]
    plots.save(panels, path, size=(10.5, 4))
    return True


def plot_training(groups: Sequence[Group], path: Path) -> bool:
    """Plot runs of PPO step by step: means, and bands from the lowest seed to the
    highest. Return False if there is nothing to draw."""
    trained = [group for group in groups if group.stage == "ppo"]
    colours = _colours(groups, [])

    def panel(metric: str, title: str):
        curves = plots.group_curves(trained, metric, colours)
        if not curves:
            return None
        return lambda axes: plots.draw_curves(axes, curves, title=title, x="step")

    panels = list(filter(None, (panel(*metric) for metric in TRAINING)))
    if panels:
        plots.save(panels, path, size=(3.4 * len(panels) + 1.5, 3.3))
    return bool(panels)


def _draw_end(axes: Axes, model: tables.Model, y: list[float], colour: str) -> None:
    x = float(np.mean([row["kl"] for row in model.rows]))
    mean, bars = float(np.mean(y)), None
    if len(y) > 1:
        effect = Effect.of(y)
        bars = [[mean - effect.low], [effect.high - mean]]
    style = {"fmt": "o", "color": colour, "capsize": 2.5, "markersize": 6}
    axes.errorbar(x, mean, bars, label=model.label, **style)


def _way(group: Group, metric: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Return KL and the metric, as means over seeds, where all seeds have both."""
    if group.stage != "ppo":
        return None
    curves = [
        plots.curve(
            [run.series(name, where=metric) for run in group.runs], colour=0, label=""
        )
        for name in ("objective/kl", metric)
    ]
    if None in curves:
        return None
    # Single steps are noisy: eight points for each run.
    parts = [np.array_split(curve.mean, min(8, len(curve.mean))) for curve in curves]
    return tuple(np.array([part.mean() for part in column]) for column in parts)


def _score(row: dict) -> float | None:
    return row.get("score")


def _colours(groups: Sequence[Group], models: Sequence[tables.Model]) -> dict[str, int]:
    """Return a colour for each name, the same for a policy's training and
    evaluation."""
    names = [m.label for m in models] + [g.label for g in groups if g.stage == "ppo"]
    return {name: i for i, name in enumerate(dict.fromkeys(names))}
