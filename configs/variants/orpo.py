"""ORPO: the SFT loss of the right answer and an odds ratio, without a reference.

Hong et al. (2024), arXiv 2403.07691; beta is the paper's lambda.

Run: python launch/collect.py --config=configs/variants/pairs.py:tiny \
         --workdir=runs/right_pairs --config.init_from=runs/sft
     python launch/train.py --config=configs/variants/orpo.py:tiny \
         --workdir=runs/orpo --config.init_from=runs/sft \
         --config.pairs=runs/right_pairs/comparisons.jsonl

On the testbed the share of right answers rose from 35 to 45 % (three seeds,
results/variants.md).
"""

from configs import dpo


def get_config(preset="tiny"):
    c = dpo.get_config(preset)
    c.beta_sft = 0.0
    c.eval_every = 0
    c.loss = "orpo"
    c.beta = 0.1
    return c
