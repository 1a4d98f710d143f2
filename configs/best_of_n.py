"""True quality of the best of n samples by a reward model, on the testbed.

Run: python launch/evaluate.py --config=configs/evaluate.py:best_of_n \
         --workdir=runs/best_of_n --config.policy=runs/sft \
         --config.reward_model=runs/reward
"""

from configs import common


def get_config(preset="tiny"):
    c = common.stage("best_of_n", preset)
    lengths = common.lengths(preset)
    c.policy = ""  # a workdir or a Hugging Face folder
    c.reward_model = ""  # a workdir of stages/reward.py
    c.prompts = ""  # a .jsonl file; "": the data folder's eval_prompts.jsonl
    c.num_prompts = 200  # the first so many
    c.num_samples = 64  # to each prompt: the largest n
    c.batch_size = 128  # answers
    c.max_prompt_tokens = lengths.prompt  # longer ones are left out
    c.max_response_tokens = lengths.generated  # where generation stops
    c.temperature = 1.0  # divides the logits; 0: greedy
    return c
