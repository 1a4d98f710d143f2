"""The runs of a study, such as that of the paper's claims, and what they show."""

import re
from pathlib import Path

from absl import logging
from ml_collections import ConfigDict

from rlhf_jax.data import sources
from rlhf_jax.evaluation.report import page, tables
from rlhf_jax.evaluation.report.claims import (
    headlines,
    markdown,
    plot_effects,
    plot_frontier,
    plot_training,
)
from rlhf_jax.evaluation.report.runs import find_runs, group_runs
from rlhf_jax.evaluation.study import Claim, World, results
from rlhf_jax.files import write_json, write_text
from rlhf_jax.launching.jobs import Job, check_jobs, load_config, run_jobs
from rlhf_jax.terminal import print_markdown
from rlhf_jax.training.workdir import finish, open_workdir

REFERENCE = re.compile(r"@([\w.]+)")  # "@name": the folder of another run


def run(
    config: ConfigDict,
    workdir: str,
    *,
    study,
    workers_per_device: int = 1,
    tables_only: bool = False,
) -> None:
    """Do the runs that the claims of `config` need; write tables, plots and the report.

    Args:
        study: the module with the claims and their runs, such as configs/paper.py.
        workers_per_device: see `run_jobs`.
        tables_only: does no run; the tables and plots are of those that are done, which
            need no more than their config.json, summary.json and metrics.jsonl.
    """
    claims = chosen_claims(config, study)
    runs = [str(x.relative_to(workdir)) for x in Path(workdir).glob("seed*/*")]
    free = ("claims", "seeds", "verdicts", "results", "workers")
    folder = open_workdir(workdir, config, free=free, parts={"data": runs})
    failed = {}
    if not tables_only:
        jobs = []
        for seed in config.seeds:
            jobs += seed_jobs(folder / f"seed{seed}", seed, config, study)
        check_jobs(jobs)
        failed = run_jobs(
            jobs, workers=config.workers, workers_per_device=workers_per_device
        )
        for name, reason in failed.items():
            logging.error("%s: %s", name, reason)
    worlds = [World(folder / f"seed{seed}") for seed in config.seeds]
    rows = results(claims, worlds, with_verdicts=config.verdicts)
    runs, notes = find_runs([folder])
    groups = group_runs(runs)
    text = markdown(rows)
    if models := tables.models(groups):
        text += "\n" + tables.markdown(tables.models_table(models))
    out = Path(config.results or folder / "results")
    write_results(out, study.NAME, rows, text)
    if study.CURVES:
        shown = [g for g in groups if g.stage != "ppo" or g.label in study.CURVES]
        plot_frontier(groups, out / "frontier.png")
        plot_training(shown, out / "training.png")
    report = page.html(runs, notes, title=str(folder))
    write_text(folder / "report.html", report)
    print_markdown(headlines(rows))
    if not failed and not tables_only:
        finish(folder, {})


def write_results(out: Path, name: str, rows: list[dict], text: str) -> None:
    """Write the tables, and a plot of the effects, into the folder `out`."""
    write_text(out / f"{name}.md", text)
    write_json(out / f"{name}.json", rows)
    if rows:
        plot_effects(rows, out / f"{name}.png")


def chosen_claims(config: ConfigDict, study) -> list[Claim]:
    """Return the claims of `config.claims`.

    Raises:
        ValueError: a number is none of the study's.
    """
    by_number = {claim.number: claim for claim in study.CLAIMS}
    unknown = sorted(set(config.claims) - set(by_number))
    if unknown:
        raise ValueError(
            f"config.claims: there is no claim {unknown[0]}; the study has "
            f"{min(by_number)} to {max(by_number)}."
        )
    return [claim for n, claim in by_number.items() if n in config.claims]


def seed_jobs(folder: Path, seed: int, config: ConfigDict, study) -> list[Job]:
    """Return the runs of one seed that the claims need, each after the runs that it
    starts from."""
    claims = chosen_claims(config, study)
    runs = study.runs(claims)
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

    for claim in claims:
        for name in claim.runs:
            add(name)
    if any(claim.policies for claim in claims):
        add("evaluate")
    return list(jobs.values())


def _resolve(value, folder: Path):
    if not isinstance(value, str):
        return value
    return REFERENCE.sub(lambda match: str(folder / match.group(1)), value)
