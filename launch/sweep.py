"""Run one config many times: a grid, a list or random draws, in parallel or elsewhere.

python launch/sweep.py --config=configs/ppo.py:tiny --workdir=runs/kl \
    --grid=config.kl_coef=0.01,0.03,0.1 --grid=config.seed=0,1,2 \
    --set=config.init_from=runs/sft --set=config.reward_model=runs/reward \
    --metric=eval/scores

--grid for several keys gives the product of their values; --list=config.a=1,2
--list=config.b=3,4 pairs the values by position; --random=N draws N of all these runs.
--draw=config.optimizer.learning_rate=1e-5:1e-3:log draws from a range, N times.
A config file may define its own runs, as in big_vision: a function `sweep(add)` that
calls `add(key=value, ...)` for every run.

--workers=N runs N at a time, each with its part of the cores and accelerators;
--workers_per_device=N lets N runs share each part, and its GPUs' memory. --print
prints one command per line instead, for GNU parallel, slurm or XPK. Started again, the
sweep skips finished runs and continues interrupted runs. At the end it prints a table,
sorted by --metric with the best run first, in which failed runs are marked (see their
log.txt), and writes WORKDIR/report.html.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the package beside this script

from rlhf_jax.terminal import print_table
from rlhf_jax.training import preemption

preemption.install()  # first: the other imports take seconds

from absl import flags, logging

from rlhf_jax.evaluation.report.page import write_report
from rlhf_jax.launching import cli
from rlhf_jax.launching.jobs import run_jobs
from rlhf_jax.launching.sweep import make_jobs, table, variants

CONFIG = flags.DEFINE_string("config", None, "FILE.py:PRESET.", required=True)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "The folder for the folders of the runs.", required=True
)
GRID = flags.DEFINE_multi_string(
    "grid", [], "config.KEY=V,V,...: all products of values."
)
LIST = flags.DEFINE_multi_string("list", [], "config.KEY=V,V,...: paired by position.")
SET = flags.DEFINE_multi_string("set", [], "config.KEY=V: the same in every run.")
DRAW = flags.DEFINE_multi_string("draw", [], "config.KEY=LOW:HIGH[:log]: by --random.")
RANDOM = flags.DEFINE_integer("random", 0, "The number of runs to draw; 0: run all.")
SEED = flags.DEFINE_integer("seed", 0, "The seed of the draw.")
WORKERS = flags.DEFINE_integer(
    "workers", 1, "The number of runs at a time.", lower_bound=1
)
PER_DEVICE = flags.DEFINE_integer(
    "workers_per_device",
    1,
    "The number of runs that share a worker's part of the accelerators.",
    lower_bound=1,
)
PRINT = flags.DEFINE_bool("print", False, "Print the commands; run nothing.")
METRIC = flags.DEFINE_string(
    "metric", "", "A key of summary.json (nested: a.b) that sorts the table."
)
LOWEST = flags.DEFINE_bool("lowest", False, "The lowest of the metric is the best.")


def main(arguments: list[str]) -> None:
    cli.refuse_arguments(arguments)
    runs = variants(
        CONFIG.value,
        grid=GRID.value,
        together=LIST.value,
        draws=DRAW.value,
        count=RANDOM.value,
        seed=SEED.value,
    )
    workdir = Path(WORKDIR.value).absolute()
    jobs = make_jobs(CONFIG.value, runs, workdir, same=SET.value)
    if PRINT.value:
        print("\n".join(job.command() for job in jobs))
        return
    failed = run_jobs(jobs, workers=WORKERS.value, workers_per_device=PER_DEVICE.value)
    header, rows = table(jobs, failed, METRIC.value, lowest=LOWEST.value)
    print_table(WORKDIR.value, header, rows)
    if len(failed) < len(jobs):
        report = workdir / "report.html"
        write_report([WORKDIR.value], report, form="html", title=WORKDIR.value)
        logging.info("The runs side by side: %s", report)
    if failed:
        logging.error("%d of %d runs failed.", len(failed), len(jobs))
        sys.exit(1)


if __name__ == "__main__":
    cli.command(main)
