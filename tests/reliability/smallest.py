"""The whole pipeline, or one of its stages alone, in as few steps as will do, for tests
that interrupt it: smallest.py, smallest.py:sft."""

from configs import pipeline

SMALL = {
    "model": "micro",
    "epochs": 1,
    "total_steps": 6,
    "num_responses": 2,
    "max_response_tokens": 12,
    "num_prompts": 16,
    "num_eval_prompts": 8,
    "num_samples": 2,
    "eval_every": 3,
    "save_every": 2,
}
BATCH_SIZES = {"sft": 8, "reward": 8, "dpo": 4, "ppo": 8}


def get_config(alone=""):
    c = pipeline.get_config("tiny")
    c.data.vocab_size = 400
    c.data.testbed.num_sft = 64
    c.data.testbed.num_sft_test = 8
    c.data.testbed.num_comparison_prompts = 64
    c.data.testbed.num_rl_prompts = 24
    c.data.testbed.num_eval_prompts = 16
    c.data.testbed.num_probes = 4
    for name in ("sft", "collect", "reward", "ppo", "pairs", "dpo", "evaluate"):
        stage = c[name]
        stage.update({k: x for k, x in SMALL.items() if k in stage})
        stage.batch_size = BATCH_SIZES.get(name, 16)
        for limit in ("max_tokens", "max_sft_tokens", "max_prompt_tokens"):
            if limit in stage:
                stage[limit] = 192
        if "pad_to_multiple" in stage:
            stage.pad_to_multiple = 64  # few widths, few compiled programs
        if name in ("reward", "dpo"):
            stage.max_response_tokens = 64
    if alone:
        c[alone].data = c.data
        c[alone].num_samples = 0  # one program less to compile
    return c[alone] if alone else c
