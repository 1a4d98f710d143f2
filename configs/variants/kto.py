"""KTO: right and wrong answers, each judged alone against the policy's drift.

Ethayarajh et al. (2024), arXiv 2402.01306, on the responses of pairs, split.

Run: python launch/collect.py --config=configs/variants/pairs.py:tiny \
         --workdir=runs/right_pairs --config.init_from=runs/sft
     python launch/train.py --config=configs/variants/kto.py:tiny \
         --workdir=runs/kto --config.init_from=runs/sft \
         --config.pairs=runs/right_pairs/comparisons.jsonl

On the testbed the share of right answers rose from 35 to 42 % (three seeds,
results/variants.md).
"""

from configs import dpo


def get_config(preset="tiny"):
    c = dpo.get_config(preset)
    c.beta_sft = 0.0
    c.eval_every = 0
    c.loss = "kto"
    c.beta = 0.1
    c.reference = "on_the_fly"
    return c
