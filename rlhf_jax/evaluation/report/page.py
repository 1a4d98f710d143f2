"""The report of runs as one self-contained page: tables, plots, conversations."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2
import numpy as np

from rlhf_jax.evaluation.report import plots, tables
from rlhf_jax.evaluation.report.conversations import conversations
from rlhf_jax.evaluation.report.runs import (
    Group,
    Run,
    find_runs,
    group_runs,
    has_number,
    read_calibration,
    read_lines,
)
from rlhf_jax.files import write_text

# The curves of stages that train: metric, title.
CURVES = (
    ("objective/scores", "Score of the reward model"),
    ("eval/scores", "Score, held-out prompts"),
    ("eval/quality", "True quality, held-out prompts"),
    ("watch/gap", "Gap of score and judge, held-out prompts"),
    ("watch/common_openings", "Answers with the 3 commonest openings"),
    ("watch/repeated_sentences", "Sentences repeated in an answer"),
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
PATHS = (
    ("objective/scores", "Score against KL"),
    ("eval/quality", "True quality against KL"),
)
PATH_POINTS = 16  # points of a run in a plot against KL; steps are averaged


class Section(NamedTuple):
    """A heading with plots; `legend` names the colours of runs, `numbers` holds the
    metrics with a single value."""

    title: str
    note: str
    legend: list[tuple[str, str]]  # colour, label
    plots: list[str]  # <svg> elements
    numbers: list[tuple[str, str]]  # name, value


def html(runs: Sequence[Run], notes: Sequence[str], *, title: str) -> str:
    """Return the page; texts of models and configs are escaped."""
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
    """Return the tables alone, for pasting."""
    groups = group_runs(runs)
    parts = [f"# {title}\n", *(f"- {note}\n" for note in notes)]
    parts += map(tables.markdown, summary_tables(groups))
    for table in tables.config_tables(groups):
        named = table._replace(title=f"Config differences: {table.title}")
        parts.append(tables.markdown(named))
    return "\n".join(parts)


def summary_tables(groups: Sequence[Group]) -> list[tables.Table]:
    models = tables.models(groups)
    evaluated = [tables.models_table(models)] if models else []
    runs = tables.runs_table(groups)
    return [*evaluated, runs] if runs.rows else evaluated


def sections(groups: Sequence[Group]) -> Iterator[Section]:
    """Return every section that has a plot."""
    colours = {group.label: i for i, group in enumerate(groups)}
    models = tables.models(groups)
    drawn = [_frontier(models), _lengths(models), _reliability(groups, colours)]
    drawn = [plot for plot in drawn if plot is not None]
    if drawn:
        note = (
            "Bars are 95 % intervals over prompts or pairs; quality against KL has a "
            "point a seed. Reliability: how often the reward model orders held-out "
            "pairs as people did, against how sure its scores are."
        )
        yield Section("Quality, length, reliability", note, [], drawn, [])
    for stage in dict.fromkeys(group.stage for group in groups):
        same = [group for group in groups if group.stage == stage]
        drawn = [_frontier_of_training(same, colours, *path) for path in PATHS]
        drawn.append(_watch(same, colours))
        drawn += [_curves(same, colours, *curve) for curve in CURVES]
        drawn = [plot for plot in drawn if plot is not None]
        numbers = [line for curve in CURVES for line in _numbers(same, *curve)]
        if drawn or numbers:
            note = "Mean over seeds; the band goes from the lowest to the highest."
            has_bands = any(len(group.runs) > 1 for group in same)
            legend = [(plots.colour(colours[g.label]), g.label) for g in same]
            note = note if has_bands else ""
            yield Section(f"Training: {stage}", note, legend, drawn, numbers)


def _numbers(groups, metric: str, title: str) -> list[tuple[str, str]]:
    """Return the metrics with one point in every run, which are not plotted."""
    curves = plots.group_curves(
        groups, metric, dict.fromkeys((g.label for g in groups), 0)
    )
    if any(len(curve.x) > 1 for curve in curves):
        return []
    return [
        (f"{title}, {c.label}, step {c.x[0]:,.0f}", tables.number(c.mean[0]))
        for c in curves
    ]


def _curves(groups, colours, metric: str, title: str) -> str | None:
    curves = plots.group_curves(groups, metric, colours)
    if all(len(curve.x) < 2 for curve in curves):
        return None
    name = f"{groups[0].stage} {metric}"
    return plots.inline(
        lambda axes: plots.draw_curves(axes, curves, title=title, x="step"), name=name
    )


def _watch(groups, colours) -> str | None:
    """Plot the score learned from, the judge's and the length, by evaluation."""
    curves = {
        name: plots.group_curves(groups, f"watch/{name}", colours)
        for name in ("scores", "judge_scores", "length")
    }
    if all(len(curve.x) < 2 for curve in curves["judge_scores"]):
        return None
    warned = [
        (step, score, colours[group.label])
        for group in groups
        for run in group.runs
        for step, score in run.series("watch/judge_scores")
        if (step, 1) in run.series("watch/over_optimised")
    ]
    return plots.inline(
        lambda axes: plots.draw_watch(axes, **curves, warned=warned),
        name=f"{groups[0].stage} watch",
    )


def _frontier(models) -> str | None:
    """Plot quality against KL, with a point for each seed of each evaluated model."""
    points = [
        plots.Point(
            row["kl"],
            *(row["quality"][x] for x in ("mean", "low", "high")),
            i,
            model.label if number == 0 else "",
        )
        for i, model in enumerate(models)
        for number, row in enumerate(model.rows)
        if "quality" in row and "kl" in row
    ]
    if not points:
        return None
    title, x = "Quality against KL", "KL from the first model, nats a response"
    return plots.inline(
        lambda axes: plots.draw_points(axes, points, title=title, x=x, y=""), name=title
    )


def _frontier_of_training(groups, colours, metric: str, title: str) -> str | None:
    """Plot a training metric against KL, with a line for each seed."""
    curves = []
    for group in groups:
        for path in (_path(run, metric) for run in group.runs):
            if len(path) > 1:
                x, y = path.T
                curves.append(plots.Curve(x, y, y, y, colours[group.label]))
    if not curves:
        return None
    x = "KL, nats a response"
    return plots.inline(
        lambda axes: plots.draw_curves(axes, curves, title=title, x=x),
        name=f"{groups[0].stage} {title}",
    )


def _path(run: Run, metric: str) -> np.ndarray:
    """Return KL and the metric step by step: [points, 2]."""
    path = [
        (line[kl], line[metric])
        for line in run.metrics
        for kl in ("objective/kl", "eval/kl")  # the names in PPO and in DPO
        if has_number(line, kl) and has_number(line, metric)
    ]
    parts = np.array_split(np.array(path), PATH_POINTS)
    return np.array([part.mean(0) for part in parts if len(part)])


def _lengths(models) -> str | None:
    lengths = {}
    for i, model in enumerate(models):
        tokens = [
            line["tokens"]
            for run in model.group.runs
            for line in read_lines(run.folder / f"answers_{model.name}.jsonl")
            if has_number(line, "tokens")
        ]
        if tokens:
            lengths[model.label] = (i, np.array(tokens))
    if not lengths:
        return None
    title = "Length of responses"
    return plots.inline(
        lambda axes: plots.draw_lengths(axes, lengths, title=title), name=title
    )


def _reliability(groups, colours) -> str | None:
    """Plot the reliability of each group's first seed; None without any."""
    reports = {}
    for group in groups:
        path = group.runs[0].folder / "evaluation" / "report.json"
        if path.is_file():
            reports[group.label] = (colours[group.label], read_calibration(path))
    if not reports:
        return None
    title = "Reliability of the reward model"
    return plots.inline(
        lambda axes: plots.draw_reliability(axes, reports, title=title), name=title
    )


def write_report(folders: list[str], out: Path | None, *, form: str, title: str) -> str:
    """Return the report of all runs in `folders`; write it to `out` if given."""
    runs, notes = find_runs(folders)
    text = {"html": html, "md": markdown}[form](
        runs, notes, title=title or ", ".join(map(str, folders))
    )
    if out is not None:
        write_text(out, text)
    return text
