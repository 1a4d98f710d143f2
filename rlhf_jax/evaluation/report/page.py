"""Runs as one page that needs nothing else: tables, plots, conversations."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2
import numpy as np

from rlhf_jax.evaluation.report import plots, tables
from rlhf_jax.evaluation.report.conversations import conversations
from rlhf_jax.evaluation.report.runs import Group, Run, group_runs, read_lines

# Of stages that train: metric, title.
CURVES = (
    ("objective/scores", "Score of the reward model"),
    ("eval/scores", "Score, held-out prompts"),
    ("eval/quality", "True quality, held-out prompts"),
    ("objective/kl", "KL from the reference, nats a response"),
    ("eval/kl", "KL, held-out prompts, nats a response"),
    ("response/length_mean", "Length of responses, tokens"),
    ("eval/response_length", "Length, held-out prompts, tokens"),
    ("objective/entropy", "Entropy, nats a token"),
    ("eval/accuracy", "Held-out pairs in order"),
    ("eval/loss", "Held-out loss"),
    ("loss/sft", "Loss, SFT"),
    ("loss/reward", "Loss, reward model"),
    ("loss/dpo", "Loss, DPO"),
    ("loss/policy", "Loss, policy"),
    ("loss/value", "Loss, value"),
    ("rewards/margins", "Margin of chosen over rejected"),
    ("rewards/accuracies", "Pairs in order, training"),
    ("logps/chosen", "Log-probability of chosen"),
    ("logps/rejected", "Log-probability of rejected"),
    ("optim/grad_norm", "Norm of the gradient"),
    ("tokens_per_second", "Speed, tokens a second"),
)
SINGLE = (4.8, 3.1)  # inches, of a plot that stands alone
PATH_POINTS = 16  # of a run on its way from the reference; steps are averaged


class Section(NamedTuple):
    """A heading with plots; `legend` names the colours of runs."""

    title: str
    note: str
    legend: list[tuple[str, str]]  # colour, label
    plots: list[str]  # <svg> elements


def html(runs: Sequence[Run], notes: Sequence[str], *, title: str) -> str:
    """The page. Whatever models or configs say is escaped."""
    groups = group_runs(runs)
    here = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("page.html").render(
        title=title,
        style=(here / "page.css").read_text(encoding="utf-8"),
        notes=notes,
        tables=summary_tables(groups),
        sections=list(sections(groups)),
        conversations=conversations(groups),
        configs=list(tables.config_tables(groups)),
    )


def markdown(runs: Sequence[Run], notes: Sequence[str], *, title: str) -> str:
    """The tables alone, for pasting."""
    groups = group_runs(runs)
    parts = [f"# {title}\n", *(f"- {note}\n" for note in notes)]
    parts += map(tables.markdown, summary_tables(groups))
    for table in tables.config_tables(groups):
        named = table._replace(title=f"Config differences: {table.title}")
        parts.append(tables.markdown(named))
    return "\n".join(parts)


def summary_tables(groups: Sequence[Group]) -> list[tables.Table]:
    models = tables.models(groups)
    found = [tables.models_table(models)] if models else []
    runs = tables.runs_table(groups)
    return [*found, runs] if runs.rows else found


def sections(groups: Sequence[Group]):
    """Every section that has a plot."""
    colours = {group.label: i for i, group in enumerate(groups)}
    evaluated = [tables.models(groups), colours]
    for make in (_frontier, _lengths):
        section = make(*evaluated)
        if section:
            yield section
    yield from _frontier_of_training(groups, colours)
    yield from _reliability(groups, colours)
    for stage in dict.fromkeys(group.stage for group in groups):
        same = [group for group in groups if group.stage == stage]
        drawn = list(filter(None, (_curves(same, colours, *c) for c in CURVES)))
        if drawn:
            note = "Mean over seeds; the band goes from the lowest to the highest."
            several = any(len(group.runs) > 1 for group in same)
            legend = [(plots.colour(colours[g.label]), g.label) for g in same]
            yield Section(f"Training: {stage}", note if several else "", legend, drawn)


def _curves(groups, colours, metric: str, title: str) -> str | None:
    curves = [
        plots.curve(
            [
                [(x["step"], x[metric]) for x in run.metrics if _has(x, metric)]
                for run in group.runs
            ],
            colour=colours[group.label],
            label=group.label,
        )
        for group in groups
    ]
    curves = [curve for curve in curves if curve is not None]
    if not curves:
        return None
    name = f"{groups[0].stage} {metric}"
    return plots.inline(
        lambda axes: plots.draw_curves(axes, curves, title=title, x="step"), name=name
    )


def _frontier(models, colours) -> Section | None:
    """Quality against KL, a point a seed of each evaluated model."""
    points = [
        plots.Point(
            row["kl"], *(row["quality"][x] for x in ("mean", "low", "high")), i,
            model.label if number == 0 else "",
        )
        for i, model in enumerate(models)
        for number, row in enumerate(model.rows)
        if "quality" in row
    ]  # fmt: skip
    if not points:
        return None
    drawn = plots.inline(
        lambda axes: plots.draw_points(
            axes, points, title="", x="KL, nats a response", y="quality"
        ),
        name="quality against KL",
        size=SINGLE,
    )
    note = (
        "The judge's quality against KL from the first model; bars are 95 % intervals "
        "over prompts, one point a seed."
    )
    return Section("Quality against KL", note, [], [drawn])


def _frontier_of_training(groups, colours):
    """Score, and true quality where it was measured, against KL while training."""
    for metric, title in (
        ("objective/scores", "Score against KL while training"),
        ("eval/quality", "True quality against KL while training"),
    ):
        curves, legend = [], []
        for group in groups:
            seeds = [_path(run, metric) for run in group.runs]
            seeds = [path for path in seeds if len(path) > 1]
            if not seeds:
                continue
            label, number = group.label, colours[group.label]
            legend.append((plots.colour(number), label))
            for path in seeds:
                x, y = path.T
                curves.append(plots.Curve(x, y, y, y, number, label))
        if curves:
            drawn = plots.inline(
                lambda axes, curves=curves: plots.draw_curves(
                    axes, curves, title="", x="KL, nats a response"
                ),
                name=title,
                size=SINGLE,
            )
            yield Section(
                title,
                "One line a seed; neighbouring steps are averaged.",
                legend,
                [drawn],
            )


def _path(run: Run, metric: str) -> np.ndarray:
    """KL and the metric, [points, 2], step by step."""
    path = [
        (line[kl], line[metric])
        for line in run.metrics
        for kl in ("objective/kl", "eval/kl")  # of PPO, of DPO
        if _has(line, kl) and _has(line, metric)
    ]
    parts = np.array_split(np.array(path), PATH_POINTS)
    return np.array([part.mean(0) for part in parts if len(part)])


def _lengths(models, colours) -> Section | None:
    found = {}
    for i, model in enumerate(models):
        tokens = [
            line["tokens"]
            for run in model.group.runs
            for line in read_lines(run.folder / f"answers_{model.name}.jsonl")
            if _has(line, "tokens")
        ]
        if tokens:
            found[model.label] = (i, np.array(tokens))
    if not found:
        return None
    drawn = plots.inline(
        lambda axes: plots.draw_lengths(axes, found, title=""),
        name="lengths",
        size=SINGLE,
    )
    return Section("Length of responses", "Held-out prompts.", [], [drawn])


def _reliability(groups, colours):
    found = {}
    for group in groups:
        path = group.runs[0].folder / "evaluation" / "report.json"
        if path.is_file():
            report = json.loads(path.read_text(encoding="utf-8"))
            found[group.label] = (colours[group.label], report["calibration"])
    if found:
        drawn = plots.inline(
            lambda axes: plots.draw_reliability(axes, found, title=""),
            name="reliability",
            size=SINGLE,
        )
        note = (
            "How often the reward model orders held-out pairs as people did, against "
            "how sure its scores are; bars are 95 % intervals. First seed."
        )
        yield Section("Reliability of the reward model", note, [], [drawn])


def _has(line: dict, metric: str) -> bool:
    return isinstance(line.get(metric), int | float)
