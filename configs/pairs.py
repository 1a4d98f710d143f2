"""Pairs of a policy's responses, labelled by a reward model, for DPO.

Run: python launch/collect.py --config=configs/pairs.py:tiny --workdir=runs/pairs \
         --config.init_from=runs/sft --config.reward_model=runs/reward
"""

from configs import common


def get_config(preset="tiny"):
    c = common.stage("pairs", preset)
    common.with_model(c, preset)
    lengths = common.lengths(preset)
    common.with_rewards(c)
    # A .jsonl file of prompts; "" takes prompts.jsonl of the data folder.
    c.prompts = ""
    # Answers at most this many prompts, the first ones; 0 means all. [0, 2**24]
    c.max_prompts = 0
    # The workdir of a reward model (stages/reward.py), which labels the pairs; "" where
    # all rewards are functions.
    c.reward_model = ""
    # Samples this many responses to each prompt. [1, 1024]
    c.num_responses = 4
    # Decodes this many responses side by side, and scores the responses of this many
    # prompts at once. [1, 2**20]
    c.batch_size = 64
    # Leaves out prompts that are longer, in tokens. [1, 2**20]
    c.max_prompt_tokens = lengths.prompt
    # Cuts a response at this many tokens, its end token included. [1, 2**20]
    c.max_response_tokens = lengths.generated
    # Divides the logits before sampling; 0 takes the likeliest token. [0, inf)
    c.temperature = 1.0
    # Samples among this many of the likeliest tokens; 0 means all. [0, inf)
    c.top_k = 0
    # Samples among the likeliest tokens that together reach this probability; 1 means
    # all. (0, 1]
    c.top_p = 1.0
    # The responses that make a pair: "ranks", "random" or "every"
    # (data/cleaning/pair_rules.py).
    c.rule = "ranks"
    # The rank of the chosen response, 0 for the best; read by the rule "ranks".
    # (-inf, inf)
    c.chosen_rank = 0
    # The rank of the rejected response: -1 for the worst, num_responses // 2 for the
    # median; read by the rule "ranks". (-inf, inf)
    c.rejected_rank = -1
    # The penalty subtracted from the score of a response that was cut at its limit, in
    # units of the score. [0, inf)
    c.missing_end_penalty = 1.0
    # Leaves out pairs whose scores differ by this much or less; 0 leaves out equal
    # scores. [0, inf)
    c.min_margin = 0.0
    return c
