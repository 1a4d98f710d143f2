"""Iterative DPO: the policy of each round samples the pairs of the next round.

After "Iterative Preference Learning from Human Feedback" (arXiv 2312.11456) and
"Self-Rewarding Language Models" (arXiv 2401.10020), with a fixed reward model.

Run: python launch/iterate.py --config=configs/iterative_dpo.py:tiny \
         --workdir=runs/iterate --config.init_from=runs/sft \
         --config.reward_model=runs/reward
"""

from ml_collections import ConfigDict

from configs import common, dpo, pairs


def get_config(preset="tiny"):
    common.check_preset(preset, common.STAGE_PRESETS, "iterative_dpo")
    c = ConfigDict()
    # The seed of the first round; round r samples its pairs and orders its batches with
    # seed + r. [0, inf)
    c.seed = 0
    # The data of every round.
    c.data = common.data(preset)
    # The SFT policy: a workdir or a Hugging Face folder.
    c.init_from = ""
    # The workdir of the reward model, which labels the pairs of every round; "" where
    # pairs.rewards are functions.
    c.reward_model = ""
    # The number of rounds, each of which samples pairs and trains on them. [1, 1024]
    c.rounds = 3
    # The reference of every round: "first" is init_from, "previous" the policy that the
    # round starts from.
    c.reference = "first"
    c.pairs = pairs.get_config(preset)
    c.dpo = dpo.get_config(preset)
    # Passes over the pairs of a round once, since every round samples new pairs.
    # [1, 2**20]
    c.dpo.epochs = 1
    return c
