"""True quality of the best of n samples by a reward model, on the testbed.

Run: python launch/evaluate.py --config=configs/evaluate.py:best_of_n \
         --workdir=runs/best_of_n --config.policy=runs/sft \
         --config.reward_model=runs/reward
"""

from configs import common


def get_config(preset="tiny"):
    c = common.stage("best_of_n", preset)
    lengths = common.lengths(preset)
    # The workdir of a policy, or a Hugging Face folder.
    c.policy = ""
    # The workdir of a reward model (stages/reward.py); "" where all rewards are
    # functions.
    c.reward_model = ""
    common.with_rewards(c)
    # A .jsonl file of prompts; "" takes eval_prompts.jsonl of the data folder.
    c.prompts = ""
    # Takes this many prompts, the first ones. [1, 2**24]
    c.num_prompts = 200
    # Samples this many responses to each prompt: the largest n. [0, inf)
    c.num_samples = 64
    # Decodes, and then scores, this many responses at once. [1, 2**20]
    c.batch_size = 128
    # Leaves out prompts that are longer, in tokens. [1, 2**20]
    c.max_prompt_tokens = lengths.prompt
    # Cuts a response at this many tokens, its end token included. [1, 2**20]
    c.max_response_tokens = lengths.generated
    # Divides the logits before sampling; 0 takes the likeliest token. [0, inf)
    c.temperature = 1.0
    return c
