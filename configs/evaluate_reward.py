"""A reward model on held-out comparisons of any source.

Run: python launch/evaluate.py --config=configs/evaluate.py:reward \
         --workdir=runs/evaluate_reward --config.reward_model=runs/reward \
         --config.data.path=FOLDER
"""

from configs import common


def get_config(preset="tiny"):
    c = common.stage("evaluate_reward", preset)
    small = common.is_small(preset)
    # The reward model: a workdir of stages/reward.py or a Hugging Face folder.
    c.reward_model = ""
    # A .jsonl file of comparisons; "" takes comparisons_test.jsonl of the data folder.
    c.comparisons = ""
    # A .jsonl file of comparisons that train the bag-of-words baseline; "" takes
    # comparisons.jsonl of the data folder.
    c.comparisons_train = ""
    # Scores this many pairs at once. [1, 2**20]
    c.batch_size = 32 if small else 128
    # Limits prompts to this many tokens; too_long decides on longer ones. The default
    # leaves out few, whatever the source. [1, 2**20]
    c.max_prompt_tokens = 1024
    # Leaves out pairs with a longer response, in tokens. [1, 2**20]
    c.max_response_tokens = 1024
    # The treatment of pairs whose prompt is too long: "drop" leaves them out,
    # "truncate_prompt" removes the oldest turns.
    c.too_long = "drop"
    # Rounds the widths of batches up to a multiple of this many tokens: few widths need
    # few compiled programs. [1, 65536]
    c.pad_to_multiple = 32 if small else 128
    return c
