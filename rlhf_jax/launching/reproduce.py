"""The runs of a study, such as the paper's claims, and their effects, seed by seed."""

import functools
import re
from pathlib import Path

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from rlhf_jax.data import sources
from rlhf_jax.evaluation.claims import Effect, verdict
from rlhf_jax.evaluation.report import page, tables
from rlhf_jax.evaluation.report.claims import (
    plot_effects,
    plot_frontier,
    plot_training,
)
from rlhf_jax.evaluation.report.runs import find_runs, group_runs
from rlhf_jax.files import write_json, write_text
from rlhf_jax.launching.jobs import Job, check_jobs, load_config, run_jobs
from rlhf_jax.terminal import print_markdown
from rlhf_jax.training.workdir import finish, open_workdir, read_summary

REFERENCE = re.compile(r"@([\w.]+)")  # "@name": the folder of another run


def run(
    config: ConfigDict, workdir: str, *, study, workers_per_device: int = 1
) -> None:
    """Do the runs that the claims of `config` need; write tables, plots and the report.

    Args:
        study: the module that names the runs and the measures, such as
            configs/paper.py.
        workers_per_device: see `run_jobs`.
    """
    runs = [str(x.relative_to(workdir)) for x in Path(workdir).glob("seed*/*")]
    free = ("claims", "seeds", "results", "workers")
    folder = open_workdir(workdir, config, free=free, parts={"data": runs})
    jobs = []
    for seed in config.seeds:
        jobs += seed_jobs(folder / f"seed{seed}", seed, config, study)
    check_jobs(jobs)
    failed = run_jobs(
        jobs, workers=config.workers, workers_per_device=workers_per_device
    )
    for name, reason in failed.items():
        logging.error("%s: %s", name, reason)
    results = [
        measured
        for measure in study.MEASURES
        if measure.claim in config.claims
        and (measured := compare(measure, folder, config.seeds)) is not None
    ]
    runs, notes = find_runs([folder])
    groups = group_runs(runs)
    text = markdown(results)
    if models := tables.models(groups):
        text += "\n" + tables.markdown(tables.models_table(models))
    write_results(Path(config.results), study.NAME, results, text)
    if study.HAS_PLOTS:
        plot_frontier(groups, Path(config.results) / "frontier.png")
        plot_training(groups, Path(config.results) / "training.png")
    report = page.html(runs, notes, title=str(folder))
    write_text(folder / "report.html", report)
    print_markdown(text)
    if not failed:
        finish(folder, {})


def write_results(out: Path, name: str, results: list[dict], text: str) -> None:
    """Write the tables, and a plot of the effects, into the folder `out`."""
    write_text(out / f"{name}.md", text)
    write_json(out / f"{name}.json", results)
    if results:
        plot_effects(results, out / f"{name}.png")


def compare(measure, folder: Path, seeds) -> dict | None:
    """Return the effect of a measure over seeds; None where a run is missing."""
    ours = [_number(measure.ours, folder / f"seed{seed}") for seed in seeds]
    theirs = [_number(measure.theirs, folder / f"seed{seed}") for seed in seeds]
    if None in ours or None in theirs:
        return None
    effect = Effect.of(np.subtract(ours, theirs))
    return measure._asdict() | {
        "ours_mean": float(np.mean(ours)),
        "theirs_mean": float(np.mean(theirs)) if measure.theirs else None,
        "effect": effect._asdict(),
        "verdict": verdict(effect, measure.expected, measure.bound),
    }


def markdown(results: list[dict]) -> str:
    """Return the results as a table."""
    lines = [
        "Brackets hold 95 % intervals (Student's t over seeds).",
        "",
        "| claim | measure | seeds | ours | theirs | difference | expected | verdict |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in results:
        theirs = "" if row["theirs_mean"] is None else f"{row['theirs_mean']:.3g}"
        effect = Effect(**row["effect"])
        lines.append(
            f"| {row['claim']} | {row['text']} | {len(effect.values)} | "
            f"{row['ours_mean']:.3g} | {theirs} | {effect} | "
            f"{row['expected']} {row['bound']:g} | {row['verdict']} |"
        )
    return "\n".join(lines) + "\n"


def _number(where: str, folder: Path) -> float | None:
    """Return the number that "run:key.key" names in a seed's folder; 0 for ""."""
    if not where:
        return 0.0
    run, _, keys = where.partition(":")
    if not (folder / run / "summary.json").exists():
        return None
    return functools.reduce(
        dict.__getitem__, keys.split("."), read_summary(folder / run)
    )


def seed_jobs(folder: Path, seed: int, config: ConfigDict, study) -> list[Job]:
    """Return the runs of one seed that the claims need, each after the runs that it
    starts from."""
    runs = study.runs(config.claims)
    world = config.data.copy_and_resolve_references()
    world.testbed.seed = world.annotators.seed = seed
    sources.open_data(world, folder)
    shared = {
        "seed": seed,
        "data.path": str(folder / "data"),
        "data.testbed.seed": seed,
        "data.annotators.seed": seed,
    }
    jobs: dict[str, Job] = {}

    def add(name: str) -> None:
        if name in jobs or name == "data":
            return
        fields = dict(runs[name])
        file = fields.pop("config")
        needs = [n for value in fields.values() for n in REFERENCE.findall(str(value))]
        for other in needs:
            add(other)
        sections = set(load_config(f"configs/{file}"))
        own = {k: x for k, x in shared.items() if k.partition(".")[0] in sections}
        jobs[name] = Job(
            name=f"{folder.name}/{name}",
            config=f"configs/{file}",
            overrides=own | {key: _resolve(x, folder) for key, x in fields.items()},
            workdir=folder / name,
            after=tuple(f"{folder.name}/{n}" for n in needs if n != "data"),
        )

    for claim in config.claims:
        for name in study.EVALUATED_ALONE.get(claim, ()):
            add(f"evaluate_{name}")
        if claim in study.EVALUATED_TOGETHER:
            add("evaluate")
    return list(jobs.values())


def _resolve(value, folder: Path):
    if not isinstance(value, str):
        return value
    return REFERENCE.sub(lambda match: str(folder / match.group(1)), value)
