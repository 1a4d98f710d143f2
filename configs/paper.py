"""The claims of ChatGLM-RLHF (arXiv 2404.00934) in the small: the runs that show them.

Run: python launch/reproduce.py --config=configs/paper.py:tiny --workdir=runs/paper

Every seed has its own world, annotators, SFT model, comparisons and reward model. The
runs of a claim differ in the fields named here and in nothing else.
"""

from ml_collections import ConfigDict

from configs import common

# What each claim compares: reward models, or policies against SFT.
REWARD_MODELS = {
    1: ("reward", "reward_unbalanced"),
    2: ("reward_reg_0", "reward_reg_0.001", "reward", "reward_reg_0.1"),
}
POLICIES = {
    3: ("ppo", "ppo_whitened", "ppo_no_baseline"),
    4: ("ppo", "ppo_no_sft"),
    5: ("ppo", "dpo", "rloo", "grpo", "remax", "ipo"),
    6: ("ppo", "ppo_selected"),
}


def get_config(preset="tiny"):
    common.check_preset(preset, ("tiny",), "paper")
    c = ConfigDict()
    c.data = common.data(preset)
    c.seed = 0  # of the intervals within a run
    c.seeds = (0, 1, 2, 3, 4)
    c.claims = (1, 2, 3, 4, 5, 6)
    c.workers = 2  # runs at a time; each has its share of the cores
    return c


def runs() -> dict[str, dict]:
    """name -> its config file, and the fields that it changes. "@name" stands for the
    folder of another run, which comes first."""
    start, scorer = {"init_from": "@sft"}, {"reward_model": "@reward"}

    def reward(collect="collect", **fields):
        return {
            "config": "reward.py:tiny",
            "comparisons": f"@{collect}/comparisons.jsonl",
            "comparisons_test": "@collect/comparisons_test.jsonl",
            **start,
            **fields,
        }

    def ppo(**fields):
        return {"config": "ppo.py:tiny", **start, **scorer, **fields}

    def dpo(**fields):
        pairs = "@pairs/comparisons.jsonl"
        return {"config": "dpo.py:tiny", "pairs": pairs, **start, **fields}

    found = {
        "sft": {"config": "sft.py:tiny"},
        "collect": {"config": "collect.py:tiny", **start},
        "collect_unbalanced": {
            "config": "collect.py:tiny",
            "length_bucket": 0,
            **start,
        },
        "reward": reward(),
        "reward_unbalanced": reward("collect_unbalanced"),
        "reward_reg_0": reward(score_regularisation=0.0),
        "reward_reg_0.001": reward(score_regularisation=0.001),
        "reward_reg_0.1": reward(score_regularisation=0.1),
        "ppo": ppo(),
        "ppo_whitened": ppo(baseline="none", whiten_advantages=True),
        "ppo_no_baseline": ppo(baseline="none"),
        "ppo_no_sft": ppo(beta_sft=0.0),
        "selection": {"config": "select_prompts.py:tiny", **start, **scorer},
        "ppo_selected": ppo(prompts="@selection/prompts.jsonl"),
        "rloo": ppo(advantage="rloo", baseline="none", samples_per_prompt=4),
        "grpo": ppo(advantage="grpo", baseline="none", samples_per_prompt=4),
        "remax": ppo(advantage="remax"),  # with the reference response as baseline
        "pairs": {
            "config": "pairs.py:tiny",
            "prompts": "@data/prompts.jsonl",
            **start,
            **scorer,
        },
        "dpo": dpo(),
        "ipo": dpo(loss="ipo"),
    }
    for name in {name for names in REWARD_MODELS.values() for name in names}:
        found[f"evaluate_{name}"] = {
            "config": "evaluate.py:tiny",
            "models": "sft=@sft",
            "reward_model": f"@{name}",
        }
    for name in {name for names in POLICIES.values() for name in names}:
        found[f"evaluate_{name}"] = {
            "config": "evaluate.py:tiny",
            "models": f"sft=@sft,{name}=@{name}",
            **scorer,
        }
    return found
