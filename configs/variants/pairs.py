"""Pairs of a right and a wrong answer of the policy, for KTO and ORPO.

Run: python launch/collect.py --config=configs/variants/pairs.py:tiny \
         --workdir=runs/right_pairs --config.init_from=runs/sft
"""

from configs.variants import base


def get_config(preset="tiny"):
    return base.right_and_wrong_pairs(preset)
