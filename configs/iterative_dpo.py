"""Iterative DPO: each round's policy samples the pairs that the next one learns from.

As in "Iterative Preference Learning from Human Feedback" (arXiv 2312.11456) and
"Self-Rewarding Language Models" (arXiv 2401.10020), with a reward model that stays.

Run: python launch/iterate.py --config=configs/iterative_dpo.py:tiny \
         --workdir=runs/iterate --config.init_from=runs/sft \
         --config.reward_model=runs/reward
"""

from ml_collections import ConfigDict

from configs import common, dpo, pairs


def get_config(preset="tiny"):
    common.check_preset(preset, common.STAGE_PRESETS, "iterative_dpo")
    c = ConfigDict()
    # round r samples its pairs and orders its batches with seed + r [0, inf)
    c.seed = 0
    c.data = common.data(preset)  # of every round
    c.init_from = ""  # the SFT policy: a workdir or a Hugging Face folder
    c.reward_model = ""  # a workdir; labels the pairs of every round
    c.rounds = 3  # of sampling pairs and training on them [1, 1024]
    c.reference = "first"  # of every round: init_from; or "previous": the round's start
    c.pairs = pairs.get_config(preset)
    c.dpo = dpo.get_config(preset)
    c.dpo.epochs = 1  # the pairs are fresh every round [1, 2**20]
    return c
