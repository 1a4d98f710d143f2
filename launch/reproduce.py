"""The claims of ChatGLM-RLHF (arXiv 2404.00934) in the small, seed by seed.

python launch/reproduce.py --config=configs/paper.py:tiny --workdir=runs/paper

Trains the runs of configs/paper.py on the testbed, evaluates them by its true scorer,
and writes claims.md and claims.json: each claim, its effect with an interval over
seeds, and whether it holds. Start the same command again and it goes on.
"""

import re
from pathlib import Path

import start
from absl import logging
from jobs import Job, run_jobs
from ml_collections import ConfigDict

from configs import paper
from rlhf_jax.data import sources
from rlhf_jax.training.workdir import finish, open_workdir

REFERENCE = re.compile(r"@([\w.]+)")  # "@name": the folder of another run


def main(config: ConfigDict, workdir: str) -> None:
    folder = open_workdir(workdir, config)
    jobs = []
    for seed in config.seeds:
        jobs += seed_jobs(folder / f"seed{seed}", seed, config)
    failed = run_jobs(jobs, workers=config.workers)
    for name, reason in failed.items():
        logging.error("%s: %s", name, reason)
    if not failed:
        finish(folder, {})


def seed_jobs(folder: Path, seed: int, config: ConfigDict) -> list[Job]:
    """The runs of one seed that the claims need, each after what it starts from."""
    runs = paper.runs()
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
        for name in (paper.REWARD_MODELS | paper.POLICIES)[claim]:
            add(f"evaluate_{name}")
    return list(jobs.values())


def _resolve(value, folder: Path):
    if not isinstance(value, str):
        return value
    return REFERENCE.sub(lambda found: str(folder / found.group(1)), value)


if __name__ == "__main__":
    start.run(main)
