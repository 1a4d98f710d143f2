"""Run iterative DPO: sample pairs from the policy, train the policy on them, repeat.

python launch/iterate.py --config=configs/iterative_dpo.py:tiny \
    --workdir=runs/iterate \
    --config.init_from=runs/sft --config.reward_model=runs/reward

    init_from -> pairs_1 -> dpo_1 -> pairs_2 -> dpo_2 -> ...

The last policy is WORKDIR/dpo_ROUNDS. Start the same command again, and the run
continues where it stopped.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the package beside this script

from rlhf_jax.training import preemption

preemption.install()  # first: the other imports take seconds

from rlhf_jax.launching import cli, iterate

if __name__ == "__main__":
    cli.run(iterate.run)
