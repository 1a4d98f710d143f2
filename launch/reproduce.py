"""Test the claims of ChatGLM-RLHF (arXiv 2404.00934) at small scale, world by world.

python launch/reproduce.py --config=configs/paper.py:quick --workdir=runs/quick
python launch/reproduce.py --config=configs/paper.py:full --workdir=runs/paper
python launch/reproduce.py --config=configs/variants/study.py:tiny \
    --workdir=runs/variants

The command trains the runs of configs/paper.py on the testbed, evaluates them by the
testbed's true scorer, and writes to config.results: claims.md and claims.json (each
claim with its prediction, the effects with their 95 % intervals over worlds, the
verdict, and the results of every policy); claims.png (the effects); frontier.png (score
and quality against KL); training.png (curves over steps). configs/variants/study.py
compares the algorithms of configs/variants/ in the same way, in variants.md, .json and
.png. report.html in the workdir shows every run side by side. Start the same command
again, and it continues where it stopped.
--workers_per_device=N lets N runs share each GPU and its memory. --tables_only trains
nothing, and writes the tables and plots of the runs that are done.
"""

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the package beside this script

from rlhf_jax.training import preemption

preemption.install()  # first: the other imports take seconds

from absl import flags
from ml_collections import ConfigDict

from rlhf_jax.launching import cli, reproduce

PER_DEVICE = flags.DEFINE_integer(
    "workers_per_device", 1, "The number of runs that share a GPU.", lower_bound=1
)
TABLES_ONLY = flags.DEFINE_boolean(
    "tables_only", False, "Writes the tables of the runs that are done; trains nothing."
)


def main(config: ConfigDict, workdir: str) -> None:
    study = importlib.import_module(f"configs.{config.study}")
    reproduce.run(
        config,
        workdir,
        study=study,
        workers_per_device=PER_DEVICE.value,
        tables_only=TABLES_ONLY.value,
    )


if __name__ == "__main__":
    cli.run(main)
