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
    c.max_prompt_tokens = lengths.prompt  # longer ones are left out
    c.max_response_tokens = lengths.generated  # where generation stops
    c.temperature = 1.0  # divides the logits; 0: greedy
    c.top_k = 0  # sample of so many likeliest tokens; 0: of all
    c.top_p = 1.0  # sample of the likeliest that reach this probability
    # Which responses make a pair: "ranks", "random" or "every"
    # (data/cleaning/pair_rules.py).
    c.rule = "ranks"
    c.chosen_rank = 0  # 0 is the best; read by the rule "ranks"
    c.rejected_rank = -1  # -1 is the worst, num_responses // 2 the median
    c.missing_end_penalty = 1.0  # off the score of a response cut at its limit: PPO's
    c.min_margin = 0.0  # of score; pairs with less are left out
    return c
