"""Compare checkpoints on held-out prompts; presets "reward" and "best_of_n" look at a
reward model alone (configs/evaluate_reward.py, configs/best_of_n.py).

Run: python launch/evaluate.py --config=configs/evaluate.py:tiny --workdir=runs/eval \
         --config.models=sft=runs/sft,ppo=runs/ppo
"""

from configs import best_of_n, common, evaluate_reward

OTHERS = {"reward": evaluate_reward, "best_of_n": best_of_n}
PRESETS = (*common.STAGE_PRESETS, *OTHERS)


def get_config(preset="tiny"):
    if preset in OTHERS:
        return OTHERS[preset].get_config()
    c = common.stage("evaluate", preset)
    # Positions projected to the vocabulary at once; 0: all. [0, inf)
    c.chunk_size = common.chunk_size(preset)
    small, lengths = common.is_small(preset), common.lengths(preset)
    c.models = ""  # name=folder,name=folder ...; the others are compared with the first
    # "testbed": true quality; "reward_model": its score; a chat model: "marks" from 1
    # to 10 for each answer, or "pairs", two answers compared in both orders.
    c.judge = "testbed" if preset == "tiny" else "reward_model"
    c.service = common.chat_service(max_tokens=1024)  # of the chat model
    c.reward_model = ""  # also scores every answer when it is not the judge
    c.prompts = ""  # a .jsonl file; "": the data folder's eval_prompts.jsonl
    c.num_prompts = 400  # the first so many are answered [1, 2**24]
    c.batch_size = 100 if small else 128  # prompts at a time [1, 2**20]
    c.max_prompt_tokens = lengths.prompt  # longer ones are left out [1, 2**20]
    c.max_response_tokens = lengths.generated  # where generation stops [1, 2**20]
    c.temperature = 1.0  # divides the logits; 0: greedy [0, inf)
    c.tie_margin = 0.1  # of quality, score or marks [0, inf)
    return c
