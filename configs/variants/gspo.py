"""GSPO: the ratio of whole responses, clipped for all tokens of a response at once.

Zheng et al. (2025), arXiv 2507.18071, whose clip ranges are of another size, because
the ratio of a response is a mean over its tokens. On the testbed, whose responses are
short, the ranges are ten times those of the paper.

Run: python launch/train.py --config=configs/variants/gspo.py:tiny \
         --workdir=runs/gspo --config.init_from=runs/sft

On the testbed the share of right answers rose from 35 to 48 % (three seeds,
results/variants.md).
"""

from configs import common
from configs.variants import base


def get_config(preset="tiny"):
    c = base.policy_gradient(preset)
    small = common.is_small(preset)
    c.advantage = "grpo"
    c.objective = "gspo"
    c.loss_aggregation = "response"
    c.clip_range = 3e-3 if small else 3e-4
    c.clip_range_high = 4e-3 if small else 4e-4
    c.kl_coef = 0.0
    return c
