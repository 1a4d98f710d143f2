"""Select the prompts that are useful for training, and report what was dropped and why.

python launch/prepare_prompts.py --config=configs/prepare_prompts.py \
    --workdir=runs/prompts --config.prompts=requests.jsonl,more.jsonl.gz
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the package beside this script

from rlhf_jax.training import preemption

preemption.install()  # first: the other imports take seconds

from rlhf_jax.launching import stage

if __name__ == "__main__":
    stage.command("prepare_prompts")
