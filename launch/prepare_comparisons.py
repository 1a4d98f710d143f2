"""Make a clean, length-balanced set of raw comparisons, and report what was dropped.

python launch/prepare_comparisons.py --config=configs/prepare_comparisons.py \
    --workdir=runs/prepared --config.comparisons=answers.jsonl,more.jsonl.gz
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the package beside this script

from rlhf_jax.training import preemption

preemption.install()  # first: the other imports take seconds

from rlhf_jax.launching import stage

if __name__ == "__main__":
    stage.command("prepare_comparisons")
