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
    # Measures the variance of the policy gradient along this many random directions; 0
    # does not measure it. [0, 2**20]
    c.gradient_directions = 8
    # Takes the gradients of the responses to this many prompts, the first ones, 3 or
    # more. [1, 2**24]
    c.gradient_prompts = 200
    # Takes the gradients of this many responses to a prompt; its other responses give
    # the baselines. [1, 2**20]
    c.gradient_samples = 2
    # The ratios of the scores' variance between prompts to that within at which the
    # variance of the policy gradient is measured, 2 or more, rising; numbers drawn for
    # the prompts, in place of their mean scores, make each.
    c.gradient_ratios = (0.25, 0.5, 1.0, 2.0, 4.0)
    # Projects this many positions of a row to the vocabulary at once, to save memory; 0
    # projects all of them at once. [0, inf)
    c.chunk_size = common.chunk_size(preset)
    return c
