"""Prompt selection by the variance of scores (ChatGLM-RLHF, arXiv 2404.00934).

Run: python launch/train.py --config=configs/select_prompts.py:tiny \
         --workdir=runs/selection --config.init_from=runs/sft \
         --config.reward_model=runs/reward
     and then PPO with --config.prompts=runs/selection/prompts.jsonl
"""

from configs import common


def get_config(preset="tiny"):
    c = common.stage("select_prompts", preset)
    common.with_model(c, preset)
    lengths = common.lengths(preset)
    common.with_rewards(c)
    # A .jsonl file of prompts; "" takes prompts.jsonl of the data folder.
    c.prompts = ""
    # The workdir of a reward model (stages/reward.py); "" makes a random one, for
    # trials, and none where all rewards are functions.
    c.reward_model = ""
    # Samples this many responses to each prompt: the paper's K, whose value it does not
    # give. [1, inf)
    c.samples_per_prompt = 4
    # Drops prompts whose scores have a smaller variance. The scale is the reward
    # model's; summary.json has the quantiles. [0, inf)
    c.epsilon = 0.1
    # Decodes this many responses side by side, and scores the responses of this many
    # prompts at once. [1, 2**20]
    c.batch_size = 64
    # Leaves out prompts that are longer, in tokens. [1, 2**20]
    c.max_prompt_tokens = lengths.prompt
    # Cuts a response at this many tokens, its end token included. [1, 2**20]
    c.max_response_tokens = lengths.generated
    # Divides the logits before sampling; use the temperature of PPO. [0, inf)
    c.temperature = 1.0
    # The penalty subtracted from the score of a response that was cut at its limit, in
    # units of the score. [0, inf)
    c.missing_end_penalty = 1.0
    return c
