"""Which baseline lowers the variance of PPO's scores, measured before PPO.

Run: python launch/evaluate.py --config=configs/compare_baselines.py:tiny \
         --workdir=runs/baselines --config.policy=runs/sft \
         --config.reward_model=runs/reward
"""

from configs import common


def get_config(preset="tiny"):
    c = common.stage("compare_baselines", preset)
    lengths = common.lengths(preset)
    # The workdir of the policy from which PPO would start, or a Hugging Face folder.
    c.policy = ""
    # The workdir of a reward model (stages/reward.py); "" where all rewards are
    # functions.
    c.reward_model = ""
    common.with_rewards(c)
    # A .jsonl file of prompts; "" takes prompts.jsonl of the data folder.
    c.prompts = ""
    # Takes this many prompts, the first ones. [1, 2**24]
    c.num_prompts = 400
    # Samples this many responses to each prompt, 2 or more. [1, inf)
    c.samples_per_prompt = 8
    # Decodes, and then scores, this many responses at once. [1, 2**20]
    c.batch_size = 128
    # Leaves out prompts that are longer, in tokens. [1, 2**20]
    c.max_prompt_tokens = lengths.prompt
    # Cuts a response at this many tokens, its end token included. [1, 2**20]
    c.max_response_tokens = lengths.generated
    # Divides the logits before sampling; use the temperature of PPO. [0, inf)
    c.temperature = 1.0
    # The penalty subtracted from the score of a response that was cut at its limit, in
    # units of the score; use that of PPO. [0, inf)
    c.missing_end_penalty = 1.0
    return c
