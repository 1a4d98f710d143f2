"""The whole pipeline: SFT, clean comparisons, reward model, PPO, DPO, evaluation.

Run: python launch/pipeline.py --config=configs/pipeline.py:tiny --workdir=runs/tiny
     python launch/pipeline.py --config=configs/pipeline.py:hh --workdir=runs/hh \
         --config.data.path=FOLDER
"""

from ml_collections import ConfigDict

from configs import (
    collect,
    common,
    dpo,
    evaluate,
    pairs,
    ppo,
    prepare_comparisons,
    reward,
    sft,
)

PRESETS = ("tiny", "hh")


def get_config(preset="tiny"):
    common.check_preset(preset, PRESETS, "pipeline")
    c = ConfigDict()
    # The seed of every stage and of the testbed. [0, inf)
    c.seed = 0
    c.data = common.data(preset)
    # True trains the reward model on the comparisons of the data folder, False on newly
    # collected ones.
    c.human_comparisons = preset == "hh"
    c.sft = sft.get_config(preset)
    c.collect = collect.get_config(preset)
    c.prepare_comparisons = prepare_comparisons.get_config(preset)
    c.reward = reward.get_config(preset)
    c.ppo = ppo.get_config(preset)
    # The pairs that DPO trains on.
    c.pairs = pairs.get_config(preset)
    c.dpo = dpo.get_config(preset)
    c.evaluate = evaluate.get_config(preset)
    return c
