"""Run the whole pipeline: from nothing to an aligned model and a table of its gains.

python launch/pipeline.py --config=configs/pipeline.py:tiny --workdir=runs/tiny

    data -> sft -> collect -> prepare_comparisons -> reward
    reward -> ppo          -> evaluate
    reward -> pairs -> dpo -> evaluate

Every stage is the one that launch/train.py runs, in its own folder. At the end
WORKDIR/report.html shows all stages. Start the same command again, and the pipeline
continues where it stopped.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the package beside this script

from rlhf_jax.training import preemption

preemption.install()  # first: the other imports take seconds

from rlhf_jax.launching import cli, pipeline

if __name__ == "__main__":
    cli.run(pipeline.run)
