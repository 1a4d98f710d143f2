"""Pairs of a policy's responses, labelled by a reward model: what DPO learns from.

Run: python launch/collect.py --config=configs/pairs.py:tiny --workdir=runs/pairs \
         --config.init_from=runs/sft --config.reward_model=runs/reward
"""

from configs import common


def get_config(preset="tiny"):
    c = common.stage("pairs", preset)
    common.with_model(c, preset)
    lengths = common.lengths(preset)
    c.prompts = ""  # a .jsonl file; "": the data folder's prompts.jsonl
    c.reward_model = ""  # a workdir of stages/reward.py
    c.num_responses = 4  # to each prompt
    c.batch_size = 64  # prompts at a time
    c.max_prompt_tokens = lengths.prompt
    c.max_response_tokens = lengths.generated
    c.temperature = 1.0
    c.top_k = 0
    c.top_p = 1.0
    c.min_margin = 0.0  # of score between chosen and rejected
    return c
