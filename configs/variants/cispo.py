"""CISPO: the clip bounds the weight of a token and removes no token.

MiniMax-M1 (2025), arXiv 2506.13585: the weight has no lower bound; the paper gives no
number for the upper one, and 0.28 is DAPO's.

Run: python launch/train.py --config=configs/variants/cispo.py:tiny \
         --workdir=runs/cispo --config.init_from=runs/sft

On the testbed the share of right answers rose from 35 to 49 % (three seeds,
results/variants.md).
"""

from configs.variants import base


def get_config(preset="tiny"):
    c = base.policy_gradient(preset)
    c.advantage = "grpo"
    c.objective = "cispo"
    c.clip_range = 1.0
    c.clip_range_high = 0.28
    c.kl_coef = 0.0
    return c
