"""Many runs of one config: a grid, a list or random draws, side by side or elsewhere.

python launch/sweep.py --config=configs/ppo.py:tiny --workdir=runs/kl \
    --grid=config.kl_coef=0.01,0.03,0.1 --grid=config.seed=0,1,2 \
    --set=config.init_from=runs/sft --set=config.reward_model=runs/reward \
    --metric=eval/scores

--grid of several keys is their product; --list=config.a=1,2 --list=config.b=3,4 goes
through the keys together; --random=N draws N of all these.
--draw=config.optimizer.learning_rate=1e-5:1e-3:log draws from a range, N times.
A config file may bring its own, as in big_vision: a function `sweep(add)` that calls
`add(key=value, ...)` for every run.

--workers=N runs N at a time, each with its part of the cores and accelerators. --print
writes one command a line instead, for GNU parallel, slurm or XPK. Started again, it
skips what is done and takes up what was interrupted. Ends with a table, best first,
that names what failed (more in its log.txt), and with WORKDIR/report.html.
"""

import ast
import itertools
import runpy
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import start
from absl import app, flags, logging
from jobs import Job, run_jobs
from report import write_report
from rich.console import Console
from rich.table import Table

from rlhf_jax.training import preemption
from rlhf_jax.training.workdir import is_finished, read_summary

CONFIG = flags.DEFINE_string("config", None, "FILE.py:PRESET.", required=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Holds a folder a run.", required=True)
GRID = flags.DEFINE_multi_string("grid", [], "config.KEY=V,V,...: the product of all.")
LIST = flags.DEFINE_multi_string("list", [], "config.KEY=V,V,...: values together.")
SET = flags.DEFINE_multi_string("set", [], "config.KEY=V: the same in every run.")
DRAW = flags.DEFINE_multi_string("draw", [], "config.KEY=LOW:HIGH[:log]: by --random.")
RANDOM = flags.DEFINE_integer("random", 0, "Draw so many of the runs; 0: all.")
SEED = flags.DEFINE_integer("seed", 0, "Of the draw.")
WORKERS = flags.DEFINE_integer("workers", 1, "Runs at a time.", lower_bound=1)
PRINT = flags.DEFINE_bool("print", False, "Print the commands; run nothing.")
METRIC = flags.DEFINE_string(
    "metric", "", "Of summary.json, dots for what is inside; sorts the table."
)
LOWEST = flags.DEFINE_bool("lowest", False, "The lowest of the metric is the best.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}: flags start with --")
    start.set_up_logs()
    preemption.install()
    jobs = make_jobs(variants(), Path(WORKDIR.value).absolute())
    if PRINT.value:
        print("\n".join(job.command() for job in jobs))
        return
    failed = run_jobs(jobs, workers=WORKERS.value)
    Console(width=None if Console().is_terminal else 120).print(table(jobs, failed))
    if len(failed) < len(jobs):
        report = Path(WORKDIR.value) / "report.html"
        write_report([WORKDIR.value], report, form="html", title=WORKDIR.value)
        logging.info("The runs side by side: %s", report)
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
    ranges = [_range(text) for text in DRAW.value]
    if ranges and not RANDOM.value:
        raise ValueError("--draw: say how many runs with --random=N.")
    rng = np.random.default_rng(SEED.value)
    if ranges:
        chosen = rng.choice(len(found), RANDOM.value)
        return [found[i] | {key: draw(rng) for key, draw in ranges} for i in chosen]
    if RANDOM.value and RANDOM.value < len(found):
        chosen = rng.choice(len(found), RANDOM.value, replace=False)
        found = [found[i] for i in sorted(chosen)]
    return found


def make_jobs(runs: list[dict], folder: Path) -> list[Job]:
    """One job a run, in a folder named after what is its own.

    Raises:
        ValueError: a key or a value that the config does not take, or two runs that
            are the same.
    """
    pairs = map(_key_and_text, SET.value)
    same = {key: _value(text) for key, text in pairs}
    jobs = []
    for fields in runs:
        name = ",".join(f"{key}={value}" for key, value in fields.items()) or "run"
        name = name.replace("/", "_")
        jobs.append(Job(name, CONFIG.value, same | fields, folder / name))
    counts = Counter(job.name for job in jobs)
    if len(counts) < len(jobs):
        raise ValueError(f"The same run twice: {counts.most_common(1)[0][0]}.")
    for job in jobs:
        overrides = [f"--config.{key}={value}" for key, value in job.overrides.items()]
        start.check_config_flags(["", f"--config={CONFIG.value}", *overrides])
        try:
            job.resolve()
        except (TypeError, ValueError) as error:
            raise ValueError(f"{job.name}: {error}") from None
    return jobs


def table(jobs: list[Job], failed: dict[str, str]) -> Table:
    """The runs, best first; those without the metric at the end."""
    summaries = {
        job.name: read_summary(job.workdir)
        for job in jobs
        if is_finished(job.workdir) and job.name not in failed
    }
    values = {
        name: value
        for name, summary in summaries.items()
        if (value := _find(summary, METRIC.value)) is not None
    }
    if METRIC.value and summaries and not values:
        known = sorted({key for summary in summaries.values() for key in summary})
        logging.warning("No run reports %r; known: %s.", METRIC.value, ", ".join(known))
    sign = 1 if LOWEST.value else -1
    ordered = sorted(
        jobs, key=lambda job: (job.name not in values, sign * values.get(job.name, 0))
    )
    found = Table("run", METRIC.value or "metric", "state")
    for job in ordered:
        value = f"{values[job.name]:.4g}" if job.name in values else ""
        found.add_row(job.name, value, failed.get(job.name, "done"))
    return found


def _find(summary: dict, metric: str) -> float | None:
    """The number that a metric names: a key, or keys with dots between."""
    found = summary.get(metric)
    if found is None:
        found = summary
        for key in metric.split("."):
            found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, int | float) else None


def _values(text: str) -> tuple[str, list]:
    key, value = _key_and_text(text)
    found = _value(f"[{value}]")  # numbers and tuples; words do not parse
    return key, found if isinstance(found, list) else list(
        map(_value, value.split(","))
    )


def _range(text: str) -> tuple[str, Callable[[np.random.Generator], float]]:
    """A key, and a function that draws it: whole numbers between whole numbers, else
    to three digits."""
    key, value = _key_and_text(text)
    bounds, scale = value.removesuffix(":log"), value.endswith(":log")
    found = [_value(part) for part in bounds.split(":")]
    if len(found) != 2 or not all(isinstance(x, int | float) for x in found):
        raise ValueError(f"{text!r} is not of the form config.KEY=LOW:HIGH[:log].")
    low, high = found
    if not low < high or (scale and low <= 0):
        raise ValueError(f"{text!r}: LOW must be below HIGH, and above 0 for log.")
    if scale:
        return key, lambda rng: _short(np.exp(rng.uniform(np.log(low), np.log(high))))
    if isinstance(low, int) and isinstance(high, int):
        return key, lambda rng: int(rng.integers(low, high + 1))
    return key, lambda rng: _short(rng.uniform(low, high))


def _short(x: float) -> float:
    return float(f"{x:.3g}")


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
