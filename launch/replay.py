"""Run a suspect batch of a run again, to find what is wrong in it.

python launch/replay.py --workdir=runs/sft --batch=newest
python launch/replay.py --workdir=runs/sft --batch=runs/sft/suspects/step_000012.npz

A run saves the batch of a step whose loss or gradient was not finite, or whose loss was
an outlier (config.spike_zscore). This command computes the loss and gradient of the
batch again, with the newest checkpoint of the run or else with the start model; then
the loss of every row alone, and the text of the rows with the highest loss. It uses one
device, whatever mesh the run had.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the package beside this script

from absl import flags

from rlhf_jax.launching import cli
from rlhf_jax.launching.replay import replay, show

FLAGS = flags.FLAGS


def main(arguments: list[str]) -> None:
    cli.refuse_arguments(arguments)
    show(replay(Path(FLAGS.workdir).absolute(), Path(FLAGS.batch)))


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "The folder of the run.", required=True)
    flags.DEFINE_string(
        "batch", None, "A file in suspects/ of the run, or newest.", required=True
    )
    cli.command(main)
