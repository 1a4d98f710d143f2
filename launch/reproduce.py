"""The claims of ChatGLM-RLHF (arXiv 2404.00934) in the small, seed by seed.

python launch/reproduce.py --config=configs/paper.py:tiny --workdir=runs/paper

Trains the runs of configs/paper.py on the testbed, evaluates them by its true scorer,
and leaves in config.results: claims.md and claims.json, what each claim compares, the
effect with its 95 % interval over seeds, whether it holds, and how every policy fares;
claims.png, the effects; frontier.png, score and quality against KL; training.png, step
by step. In the workdir: report.html, every run side by side. Start the same command
again and it goes on.
"""

import functools
import json
import re
from pathlib import Path

import numpy as np
import start
from absl import logging
from jobs import Job, run_jobs
from ml_collections import ConfigDict

from configs import paper
from rlhf_jax.data import sources
from rlhf_jax.evaluation.claims import Effect, verdict
from rlhf_jax.evaluation.report import page, tables
from rlhf_jax.evaluation.report.claims import (
    plot_effects,
    plot_frontier,
    plot_training,
)
from rlhf_jax.evaluation.report.runs import find_runs, group_runs
from rlhf_jax.training.workdir import finish, open_workdir, read_summary

REFERENCE = re.compile(r"@([\w.]+)")  # "@name": the folder of another run


def main(config: ConfigDict, workdir: str) -> None:
    folder = open_workdir(workdir, config)
    jobs = []
    for seed in config.seeds:
        jobs += seed_jobs(folder / f"seed{seed}", seed, config)
    failed = run_jobs(jobs, workers=config.workers)
    for name, reason in failed.items():
        logging.error("%s: %s", name, reason)
    results = [
        measured
        for measure in paper.MEASURES
        if measure.claim in config.claims
        and (measured := compare(measure, folder, config.seeds)) is not None
    ]
    runs, notes = find_runs([folder])
    groups = group_runs(runs)
    text = markdown(results)
    if models := tables.models(groups):
        text += "\n" + tables.markdown(tables.models_table(models))
    write_results(Path(config.results), results, text)
    plot_frontier(groups, Path(config.results) / "frontier.png")
    plot_training(groups, Path(config.results) / "training.png")
    report = page.html(runs, notes, title=str(folder))
    (folder / "report.html").write_text(report, encoding="utf-8")
    print(text)
    if not failed:
        finish(folder, {})


def write_results(out: Path, results: list[dict], text: str) -> None:
    """Leave the tables, and the effects as a picture, in the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "claims.md").write_text(text, encoding="utf-8")
    (out / "claims.json").write_text(json.dumps(results, indent=2) + "\n")
    if results:
        plot_effects(results, out / "claims.png")


def compare(measure: paper.Measure, folder: Path, seeds) -> dict | None:
    """The effect that a measure finds over seeds; None where a run is missing."""
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
    """The results as a table."""
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
    """The number that "run:key.key" names in a seed's folder; 0 for ""."""
    if not where:
        return 0.0
    run, _, keys = where.partition(":")
    if not (folder / run / "summary.json").exists():
        return None
    return functools.reduce(
        dict.__getitem__, keys.split("."), read_summary(folder / run)
    )


def seed_jobs(folder: Path, seed: int, config: ConfigDict) -> list[Job]:
    """The runs of one seed that the claims need, each after what it starts from."""
    runs = paper.runs(config.claims)
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
        jobs[name] = Job(
            name=f"{folder.name}/{name}",
            config=f"configs/{file}",
            overrides=shared | {key: _resolve(x, folder) for key, x in fields.items()},
            workdir=folder / name,
            after=tuple(f"{folder.name}/{n}" for n in needs if n != "data"),
        )

    for claim in config.claims:
        for name in paper.REWARD_MODELS.get(claim, ()):
            add(f"evaluate_{name}")
        if claim in paper.POLICIES:
            add("evaluate")
    return list(jobs.values())


def _resolve(value, folder: Path):
    if not isinstance(value, str):
        return value
    return REFERENCE.sub(lambda found: str(folder / found.group(1)), value)


if __name__ == "__main__":
    start.run(main)
