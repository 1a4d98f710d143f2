"""Tables and plots of claims over worlds: effects, quality against KL, training."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_jax.evaluation.claims import LEVEL, POWER, Effect
from rlhf_jax.evaluation.report import plots, tables
from rlhf_jax.evaluation.report.runs import Group
from rlhf_jax.files import writing_whole

VERDICTS = {"holds": "#1FA774", "not shown": "#8A8F98", "the opposite": "#E0524D"}
NO_VERDICT = "#3B82F6"
TRAINING = (
    ("objective/scores", "score of the reward model"),
    ("eval/quality", "true quality, held-out prompts"),
    ("objective/kl", "KL, nats a response"),
    ("response/length_mean", "tokens a response"),
)


def headlines(rows: Sequence[dict]) -> str:
    """Return one line a claim: its effect and, where it was tested, its verdict.

    Args:
        rows: what evaluation/study.py's `results` returns, here and below.
    """
    if not rows:
        return "No claim has the runs of two worlds yet.\n"
    judged = any("verdict" in row["primary"] for row in rows)
    lines = [
        "| claim | worlds | effect [95 %] | expected |" + " verdict |" * judged,
        "|---|---|---|---|" + "---|" * judged,
    ]
    for row in rows:
        primary = row["primary"]
        effect = Effect(**primary["effect"])
        verdict = f" {primary['verdict']} |" if judged else ""
        lines.append(
            f"| {row['claim']}. {row['title']} | {len(effect.values)} | {effect} | "
            f"{_expected(primary)} |{verdict}"
        )
    return "\n".join(lines) + "\n"


def markdown(rows: Sequence[dict]) -> str:
    """Return everything about the claims: a summary, and a section on each."""
    if not rows:
        return headlines(rows)
    lines = [
        "Effects are mean differences over worlds; brackets hold 95 % intervals "
        "(Student's t). The first measure of a claim was chosen before the runs.",
        "",
        headlines(rows),
        *(line for row in rows for line in _section(row)),
    ]
    return "\n".join(lines)


def _section(row: dict) -> Iterator[str]:
    primary = row["primary"]
    yield f"### {row['claim']}. {row['title']}\n"
    yield f"*Predicted:* {row['prediction']}\n"
    if "verdict" in primary:
        yield _verdict(primary, len(primary["effect"]["values"]))
    yield from _table("measure", [primary, *row["others"]])
    if row["checks"]:
        yield "\nFollows from what was changed, and is no evidence:\n"
        yield from _table("check", row["checks"])
    yield ""


def _verdict(primary: dict, worlds: int) -> str:
    line = (
        f"**{primary['verdict'].capitalize()}**: p = {primary['p']:.2g}, "
        f"{primary['p_holm']:.2g} adjusted for the number of claims (at most {LEVEL} "
        f"holds); {primary['p_sign_flip']:.2g} by flips of signs."
    )
    if primary["verdict"] == "not shown":
        line += (
            f" These {worlds} worlds would have shown a mean "
            f"{primary['detectable']:.2g} beyond the bound with a probability of "
            f"{POWER:.0%}."
        )
    return line + "\n"


def _table(title: str, measures: Sequence[dict]) -> Iterator[str]:
    yield f"| {title} | ours | theirs | difference [95 %] | expected | by world |"
    yield "|---|---|---|---|---|---|"
    for measure in measures:
        theirs = measure["theirs"]
        effect = Effect(**measure["effect"])
        values = ", ".join(f"{value:+.3g}" for value in effect.values)
        yield (
            f"| {measure['text']} | {measure['ours']:.3g} | "
            f"{'' if theirs is None else f'{theirs:.3g}'} | {effect} | "
            f"{_expected(measure)} | {values} |"
        )


def _expected(measure: dict) -> str:
    sign = "\N{PLUS-MINUS SIGN}" if measure["expected"] == "within" else ""
    return f"{measure['expected']} {sign}{measure['bound']:g}"


def plot_effects(rows: Sequence[dict], path: Path) -> None:
    """Plot the effect of every claim with its interval, one row each with its own
    scale; small strokes are worlds, dashed lines are the bounds of the claim."""
    with mpl.rc_context(plots.STYLE | plots.IN_FILE):
        figure = Figure((9, 0.46 * len(rows) + 0.7), layout="constrained")
        panels = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
        for axes, row in zip(panels, rows, strict=True):
            _draw_effect(axes, row)
        if any("verdict" in row["primary"] for row in rows):
            handles = [
                mpl.lines.Line2D([], [], color=c, marker="o", label=name)
                for name, c in VERDICTS.items()
            ]
            figure.legend(handles=handles, loc="outside lower center", ncols=3)
        with writing_whole(path, "wb") as file:
            figure.savefig(file, dpi=110)


def _draw_effect(axes: Axes, row: dict) -> None:
    primary = row["primary"]
    effect = Effect(**primary["effect"])
    colour = VERDICTS.get(primary.get("verdict"), NO_VERDICT)
    worlds = np.zeros(len(effect.values))
    axes.plot(effect.values, worlds, "|", ms=9, mew=1.2, color="#444444", zorder=3)
    axes.plot([effect.low, effect.high], [0, 0], color=colour, linewidth=2.5)
    axes.plot(effect.mean, 0, "o", color=colour, ms=6)
    sides = (-1, 1) if primary["expected"] == "within" else (1,)
    for side in sides:
        bound = side * primary["bound"]
        axes.axvline(bound, linestyle="--", color="#555555", linewidth=1)
    axes.set_ylim(-1, 1)
    axes.set_yticks([])
    axes.margins(x=0.12)
    axes.locator_params(axis="x", nbins=6)
    axes.tick_params(axis="x", labelsize=7, pad=1, length=2)
    axes.spines["left"].set_visible(False)
    axes.grid(False)
    text = f"{row['claim']}  {primary['text']}"
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
