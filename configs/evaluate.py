"""Compare checkpoints on held-out prompts; the presets "reward" and "best_of_n"
evaluate a reward model (configs/evaluate_reward.py, configs/best_of_n.py).

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
    # Projects this many positions of a row to the vocabulary at once, to save memory; 0
    # projects all of them at once. [0, inf)
    c.chunk_size = common.chunk_size(preset)
    small, lengths = common.is_small(preset), common.lengths(preset)
    # The models, as name=folder,name=folder; each is compared with the first.
    c.models = ""
    # The judge: "testbed" gives the true quality; "reward_model" its score; "rewards"
    # the sum of all rewards; a chat model gives "marks" from 1 to 10 for each answer,
    # or compares "pairs" of answers in both orders.
    c.judge = "testbed" if preset == "tiny" else "reward_model"
    # The chat model that judges.
    c.service = common.chat_service(max_tokens=1024)
    # The workdir of a reward model, which scores every answer even where it is not the
    # judge.
    c.reward_model = ""
    common.with_rewards(c)
    # The workdir of another reward model, which judges under judge "reward_model"; ""
    # lets reward_model judge. One that no model was trained against is a fair judge.
    c.judge_model = ""
    # The probes of skills outside reinforcement learning: "data" asks those of the data
    # folder, where there are any; "testbed" asks the testbed's.
    c.probes = "data"
    # A .jsonl file of prompts; "" takes eval_prompts.jsonl of the data folder.
    c.prompts = ""
    # Answers this many prompts, the first ones. [1, 2**24]
    c.num_prompts = 400
    # Decodes this many answers side by side. [1, 2**20]
    c.batch_size = 100 if small else 128
    # Leaves out prompts that are longer, in tokens. [1, 2**20]
    c.max_prompt_tokens = lengths.prompt
    # Cuts an answer at this many tokens, its end token included. [1, 2**20]
    c.max_response_tokens = lengths.generated
    # Divides the logits before sampling; 0 takes the likeliest token. [0, inf)
    c.temperature = 1.0
    # The largest difference of quality, score or marks that counts as a tie. [0, inf)
    c.tie_margin = 0.1
    return c
