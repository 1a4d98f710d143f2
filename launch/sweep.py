"""Many runs of one config: a grid, a list or random draws, side by side or elsewhere.

python launch/sweep.py --config=configs/ppo.py:tiny --workdir=runs/kl \
    --grid=config.kl_coef=0.01,0.03,0.1 --grid=config.seed=0,1,2 \
    --set=config.init_from=runs/sft --set=config.reward_model=runs/reward \
    --metric=eval/scores

--grid of several keys is their product; --list=config.a=1,2 --list=config.b=3,4 goes
through the keys together; --random=N draws N of all these. A config file may bring its
own: a function `sweep(add)` that calls `add(key=value, ...)` for every run.
--print writes one command a line instead of running them, for GNU parallel, slurm or
XPK. Started again, it skips what is done and takes up what was interrupted.
"""

import ast
import itertools
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import start
from absl import app, flags, logging
from jobs import Job, run_jobs
from rich.console import Console
from rich.table import Table

CONFIG = flags.DEFINE_string("config", None, "FILE.py:PRESET.", required=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Holds a folder a run.", required=True)
GRID = flags.DEFINE_multi_string("grid", [], "config.KEY=V,V,...: the product of all.")
LIST = flags.DEFINE_multi_string("list", [], "config.KEY=V,V,...: values together.")
SET = flags.DEFINE_multi_string("set", [], "config.KEY=V: the same in every run.")
RANDOM = flags.DEFINE_integer("random", 0, "Draw so many of the runs; 0: all.")
SEED = flags.DEFINE_integer("seed", 0, "Of the draw.")
WORKERS = flags.DEFINE_integer("workers", 1, "Runs at a time.", lower_bound=1)
PRINT = flags.DEFINE_bool("print", False, "Print the commands; run nothing.")
METRIC = flags.DEFINE_string("metric", "", "Of summary.json; sorts the table.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}: flags start with --")
    start.set_up_logs()
    jobs = make_jobs(variants(), Path(WORKDIR.value).absolute())
    if PRINT.value:
        print("\n".join(job.command() for job in jobs))
        return
    failed = run_jobs(jobs, workers=WORKERS.value)
    Console(width=None if Console().is_terminal else 120).print(table(jobs, failed))
    if failed:
        logging.error("%d of %d runs failed.", len(failed), len(jobs))
        sys.exit(1)


def variants() -> list[dict]:
    """The overrides of each run: key -> value."""
    grid = [_values(text) for text in GRID.value]
    together = [_values(text) for text in LIST.value]
    lengths = {len(values) for _, values in together}
    if len(lengths) > 1:
        raise ValueError(
            f"--list: the keys have different numbers of values: {lengths}"
        )
    rows = [
        {key: values[i] for key, values in together}
        for i in range(lengths.pop() if lengths else 1)
    ]
    keys = [key for key, _ in grid]
    products = itertools.product(*(values for _, values in grid))
    found = [row | dict(zip(keys, p, strict=True)) for p in products for row in rows]
    own = runpy.run_path(CONFIG.value.partition(":")[0]).get("sweep")
    if own is not None:
        added: list[dict] = []
        own(lambda **fields: added.append(fields))
        found = [run | fields for run in added for fields in found]
    if RANDOM.value and RANDOM.value < len(found):
        rng = np.random.default_rng(SEED.value)
        chosen = rng.choice(len(found), RANDOM.value, replace=False)
        found = [found[i] for i in sorted(chosen)]
    return found


def make_jobs(runs: list[dict], folder: Path) -> list[Job]:
    """One job a run, in a folder named after what is its own.

    Raises:
        ValueError: a key or a value that the config does not take.
    """
    pairs = map(_key_and_text, SET.value)
    same = {key: _value(text) for key, text in pairs}
    jobs = []
    for fields in runs:
        name = ",".join(f"{key}={value}" for key, value in fields.items()) or "run"
        name = name.replace("/", "_")
        jobs.append(Job(name, CONFIG.value, same | fields, folder / name))
    for job in jobs:
        overrides = [f"--config.{key}={value}" for key, value in job.overrides.items()]
        start.check_config_flags(["", f"--config={CONFIG.value}", *overrides])
        try:
            job.resolve()
        except (TypeError, ValueError) as error:
            raise ValueError(f"{job.name}: {error}") from None
    return jobs


def table(jobs: list[Job], failed: dict[str, str]) -> Table:
    """The runs, best first."""
    summaries = {}
    for job in jobs:
        path = job.workdir / "summary.json"
        summaries[job.name] = json.loads(path.read_text()) if path.exists() else {}
    metric = METRIC.value
    known = {key for summary in summaries.values() for key in summary}
    if metric and known and metric not in known:
        logging.warning(
            "No run reports %r; known: %s.", metric, ", ".join(sorted(known))
        )
    found = Table("run", metric or "state")
    ordered = sorted(
        jobs, key=lambda job: -summaries[job.name].get(metric, float("-inf"))
    )
    for job in ordered:
        state = failed.get(job.name, "done")
        value = summaries[job.name].get(metric)
        found.add_row(job.name, state if value is None else f"{value:.4g}")
    return found


def _values(text: str) -> tuple[str, list]:
    key, value = _key_and_text(text)
    return key, [_value(part) for part in value.split(",")]


def _key_and_text(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    if not key.startswith("config.") or not value:
        raise ValueError(f"{text!r} is not of the form config.KEY=VALUE.")
    return key.removeprefix("config."), value


def _value(text: str):
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


if __name__ == "__main__":
    with start.clear_errors():
        app.run(main)
