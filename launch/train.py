"""Run one stage: the module in rlhf_jax/stages that the config names.

python launch/train.py --config=configs/sft.py:tiny --workdir=runs/sft \
    [--config.key=value ...]

Stages that train: configs/sft.py, configs/reward.py, configs/ppo.py, configs/dpo.py.
configs/select_prompts.py selects the prompts that PPO learns from. The other stages
have commands of their own: launch/collect.py, launch/evaluate.py,
launch/prepare_prompts.py, launch/prepare_comparisons.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the package beside this script

from rlhf_jax.training import preemption

preemption.install()  # first: the other imports take seconds

from rlhf_jax.launching import stage

if __name__ == "__main__":
    stage.command()
