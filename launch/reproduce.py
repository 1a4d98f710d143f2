"""The claims of ChatGLM-RLHF (arXiv 2404.00934) in the small, seed by seed.

python launch/reproduce.py --config=configs/paper.py:tiny --workdir=runs/paper

Trains the runs of configs/paper.py on the testbed, evaluates them by its true scorer,
and leaves in config.results: claims.md and claims.json, what each claim compares, the
effect with its 95 % interval over seeds, whether it holds, and how every policy fares;
claims.png, the effects; frontier.png, score and quality against KL; training.png, step
by step. In the workdir: report.html, every run side by side. Start the same command
again and it goes on.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the package beside this script

from rlhf_jax.training import preemption

preemption.install()  # first: the other imports take seconds

import functools

from configs import paper
from rlhf_jax.launching import cli, reproduce

if __name__ == "__main__":
    cli.run(functools.partial(reproduce.run, paper=paper))
