"""Run one stage: flags to rlhf_jax/stages/<config.stage>.py.

python launch/train.py --config=configs/sft.py:tiny --workdir=runs/sft \
    [--config.key=value ...]
"""

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # configs import configs.common

import start
from absl import app, flags
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", None, "Stage config, file:preset.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
flags.mark_flags_as_required(["config", "workdir"])


def main(argv):
    start.no_positional(argv)
    stage = importlib.import_module(f"rlhf_jax.stages.{CONFIG.value.stage}")
    stage.train(CONFIG.value, WORKDIR.value)


if __name__ == "__main__":
    start.run(app, main)
