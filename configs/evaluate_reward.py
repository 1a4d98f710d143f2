"""A reward model on held-out comparisons of any source.

Run: python launch/evaluate.py --config=configs/evaluate.py:reward \
         --workdir=runs/evaluate_reward --config.reward_model=runs/reward \
         --config.data.path=FOLDER
"""

from configs import common


def get_config(preset="tiny"):
    c = common.stage("evaluate_reward", preset)
    small = common.is_small(preset)
    c.reward_model = ""  # a workdir of stages/reward.py or a Hugging Face folder
    c.comparisons = ""  # a .jsonl file; "": the data folder's comparisons_test.jsonl
    c.comparisons_train = ""  # what the bag-of-words baseline learns from
    c.batch_size = 32 if small else 128  # pairs [1, 2**20]
    # limits that leave out little, whatever the source [1, 2**20]
    c.max_prompt_tokens = 1024
    c.max_response_tokens = 1024  # longer ones are left out [1, 2**20]
    c.too_long = "drop"  # or "truncate_prompt": without its oldest turns
    # Widths of batches: few widths, few programs. [1, 65536]
    c.pad_to_multiple = 32 if small else 128
    return c
