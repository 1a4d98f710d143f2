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
    c.prompts = ""  # a .jsonl file; "": the data folder's prompts.jsonl
    c.reward_model = ""  # a workdir of stages/reward.py; "": a random one, to try out
    c.samples_per_prompt = 4  # the paper's K, whose value it does not give
    # Smallest variance of a prompt's scores: on the testbed it drops a quarter of them.
    # The scale is the reward model's: see the quantiles in summary.json.
    c.epsilon = 0.25
    c.batch_size = 64  # prompts at a time
    c.max_prompt_tokens = lengths.prompt  # longer ones are left out
    c.max_response_tokens = lengths.generated  # where generation stops
    c.temperature = 1.0  # PPO's
    c.missing_end_penalty = 1.0  # off the score of a response cut at its limit: PPO's
    return c
