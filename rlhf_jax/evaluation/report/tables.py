"""The tables of a report, as rows of text: models, runs, and how configs differ."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from rlhf_jax.evaluation.claims import Effect
from rlhf_jax.evaluation.report.runs import Group, Run, flat_config, has_number
from rlhf_jax.training import metrics

# Columns from a run's last line of metrics: metric -> title.
LAST = {
    "eval/loss": "held-out loss",
    "eval/accuracy": "held-out accuracy",
    "eval/quality": "true quality",
    "eval/scores": "score",
    "objective/kl": "KL",
    "eval/response_length": "tokens",
    "tokens_per_second": "tokens/s",
}
# Columns of a model in an evaluation: title -> key, nested key, format.
MEASURED = {
    "quality": ("quality", "mean", "{:.2f}"),
    "net wins": ("against_baseline", "net", "{:+.1%}"),
    "at equal length": ("against_baseline", "length_controlled_net", "{:+.1%}"),
    "score": ("score", "", "{:.2f}"),
    "tokens": ("length", "", "{:.1f}"),
    "KL": ("kl", "", "{:.2f}"),
    "log-ratio": ("log_ratio", "", "{:.2f}"),
    "skills": ("skills_right", "", "{:.0%}"),
    "skills, nats": ("skills_logprob", "", "{:.2f}"),
}


class Table(NamedTuple):
    title: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""


class Model(NamedTuple):
    """A model in the evaluations of one group, with a row for each seed."""

    label: str
    group: Group
    name: str
    rows: list[dict]


def models(groups: Sequence[Group]) -> list[Model]:
    """Return the evaluated models; a baseline shared by evaluations appears once."""
    by_key: dict[tuple, Model] = {}
    for group in groups:
        done = [run for run in group.runs if run.stage == "evaluate" and run.summary]
        for name in done[0].summary["models"] if done else ():
            rows = [
                run.summary["models"][name]
                for run in done
                if name in run.summary["models"]
            ]
            key = (name, *(row.get("checkpoint") for row in rows))
            by_key.setdefault(key, Model(name, group, name, rows))
    names = [model.name for model in by_key.values()]
    return [
        model
        if names.count(model.name) == 1
        else model._replace(label=f"{model.name} ({model.group.label})")
        for model in by_key.values()
    ]


def models_table(models: Sequence[Model]) -> Table:
    body = []
    for model in models:
        cells = [model.label, str(len(model.rows)), _shares(model.rows)]
        cells += [_number(model.rows, *where) for where in MEASURED.values()]
        body.append(cells)
    done = [run.summary for m in models for run in m.group.runs if run.summary]
    judges, firsts = (
        " and ".join(sorted({summary[key] for summary in done}))
        for key in ("judge", "baseline")
    )
    note = (
        f"Judged by {judges}, against {firsts}. Brackets hold 95 % intervals: over "
        "seeds (Student's t) where there are several, else over prompts (bootstrap)."
    )
    header = ["model", "seeds", "win / tie / lose", *MEASURED]
    return _without_empty(Table("Models", header, body, note))


def runs_table(groups: Sequence[Group]) -> Table:
    """Return the last metrics of every run that trains, as means over seeds."""
    trained = [group for group in groups if any(run.metrics for run in group.runs)]
    body = []
    for group in trained:
        runs = [run for run in group.runs if run.metrics]
        steps = sorted({run.metrics[-1]["step"] for run in runs})
        shown = " to ".join(f"{x:,}" for x in dict.fromkeys((steps[0], steps[-1])))
        open_runs = sum(run.summary is None for run in runs)
        if open_runs:
            shown += f" ({open_runs} not done)"
        cells = [group.label, group.stage, str(len(runs)), shown]
        for name in LAST:
            values = [x for x in (last(run, name) for run in runs) if x is not None]
            cells.append(number(np.mean(values)) if values else "")
        body.append(cells)
    header = ["run", "stage", "seeds", "steps", *LAST.values()]
    note = "The last values, of speed the median; means over seeds."
    return _without_empty(Table("Runs", header, body, note))


def config_tables(groups: Sequence[Group]) -> Iterator[Table]:
    """Return, for each stage with more than one group, the keys in which groups
    differ."""
    for stage in dict.fromkeys(group.stage for group in groups):
        same = [group for group in groups if group.stage == stage]
        configs = [flat_config(group.runs[0]) for group in same]
        keys = sorted({key for config in configs for key in config})
        rows = [[key, *(c.get(key, "—") for c in configs)] for key in keys]
        rows = [row for row in rows if len(set(row[1:])) > 1]
        if len(same) > 1 and rows:
            header = ["key", *(group.label for group in same)]
            yield Table(stage, header, rows)


def last(run: Run, name: str) -> float | None:
    """Return the last value of a metric in a run; for a speed, the median over the
    steps."""
    if name.startswith(metrics.MEASURED):
        values = [line[name] for line in run.metrics if has_number(line, name)]
        return float(np.median(values)) if values else None
    for line in reversed(run.metrics):
        if line.get(name) is not None:
            return line[name]
    return None


def number(x: float) -> str:
    """Format a number with four digits and separated thousands: 0.6914, 11,570."""
    return f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.4g}"


def markdown(table: Table) -> str:
    def line(cells):
        cells = (" ".join(str(x).replace("|", "\\|").split()) for x in cells)
        return "| " + " | ".join(cells) + " |\n"

    text = (
        f"## {table.title}\n\n{line(table.header)}{line(['---'] * len(table.header))}"
    )
    text += "".join(map(line, table.rows))
    return f"{text}\n{table.note}\n" if table.note else text


def _number(rows: Sequence[dict], key: str, inner: str, shape: str) -> str:
    """Format the mean over seeds, with an interval over seeds or within one seed."""
    entries = [row[key] for row in rows if key in row]
    if not inner:
        return shape.format(np.mean(entries)) if entries else ""
    entries = [x for x in entries if inner in x]
    values = [x[inner] for x in entries]
    if not values:
        return ""
    text = shape.format(np.mean(values))
    if len(values) > 1:
        _, low, high, _ = Effect.of(values)
    else:
        prefix = "" if inner == "mean" else f"{inner}_"
        low, high = (entries[0].get(f"{prefix}{side}") for side in ("low", "high"))
    has_width = low is not None and low < high
    return f"{text} [{shape.format(low)}, {shape.format(high)}]" if has_width else text


def _shares(rows: Sequence[dict]) -> str:
    versus = [row["against_baseline"] for row in rows if "against_baseline" in row]
    if not versus:
        return ""
    return " / ".join(
        f"{np.mean([x[name] for x in versus]):.0%}" for name in ("win", "tie", "lose")
    )


def _without_empty(table: Table) -> Table:
    """Remove the columns that no row fills."""
    kept = [
        i
        for i in range(len(table.header))
        if i == 0 or any(row[i] for row in table.rows)
    ]
    return table._replace(
        header=[table.header[i] for i in kept],
        rows=[[row[i] for i in kept] for row in table.rows],
    )
