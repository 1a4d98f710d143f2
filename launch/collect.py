"""Sample a model's responses and compare them: by annotators, or by a reward model.

python launch/collect.py --config=configs/collect.py:tiny \
    --workdir=runs/collect \
    --config.init_from=runs/sft
python launch/collect.py --config=configs/pairs.py:tiny --workdir=runs/pairs \
    --config.init_from=runs/sft --config.reward_model=runs/reward

With --config.annotator=people, collect writes tasks instead of comparisons:
launch/annotate.py shows the tasks to people, and launch/exchange.py makes comparisons
of the answers.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the package beside this script

from rlhf_jax.training import preemption

preemption.install()  # first: the other imports take seconds

from rlhf_jax.launching import stage

if __name__ == "__main__":
    stage.command("collect", "pairs")
