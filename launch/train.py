"""Run one stage: the module in rlhf_jax/stages that the config names.

python launch/train.py --config=configs/sft.py:tiny --workdir=runs/sft \
    [--config.key=value ...]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the package beside this script

from rlhf_jax.training import preemption

preemption.install()  # first: the other imports take seconds

from rlhf_jax.launching import stage

if __name__ == "__main__":
    stage.command()
