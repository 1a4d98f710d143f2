"""Compare checkpoints on held-out prompts, answer AlignBench, or look at a reward model
alone: how well it ranks, how far it can be trusted, which baseline its scores want.

python launch/evaluate.py --config=configs/evaluate.py:tiny \
    --workdir=runs/evaluate \
    --config.models=sft=runs/sft,ppo=runs/ppo
python launch/evaluate.py --config=configs/evaluate.py:reward \
    --workdir=runs/scores \
    --config.reward_model=runs/reward --config.data.path=FOLDER
python launch/evaluate.py --config=configs/evaluate.py:best_of_n \
    --workdir=runs/best \
    --config.policy=runs/sft --config.reward_model=runs/reward
python launch/evaluate.py --config=configs/compare_baselines.py:tiny \
    --workdir=runs/baselines \
    --config.policy=runs/sft --config.reward_model=runs/reward
python launch/evaluate.py --config=configs/alignbench.py:tiny \
    --workdir=runs/align \
    --config.policy=runs/ppo \
    --config.questions=AlignBench/data/data_v1.1_release.jsonl
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the package beside this script

from rlhf_jax.training import preemption

preemption.install()  # first: the other imports take seconds

from rlhf_jax.launching import stage

if __name__ == "__main__":
    stage.command(
        "evaluate", "evaluate_reward", "best_of_n", "compare_baselines", "alignbench"
    )
