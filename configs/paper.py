"""The claims of ChatGLM-RLHF (arXiv 2404.00934) in the small: the runs that show them.

Run: python launch/reproduce.py --config=configs/paper.py:tiny --workdir=runs/paper

Every seed has its own world, annotators, SFT model, comparisons and reward model. The
runs of a claim differ in the fields named here and in nothing else.
"""

from ml_collections import ConfigDict

from configs import common


def runs() -> dict[str, dict]:
    """name -> its config file, and the fields that it changes. "@name" stands for the
    folder of another run, which is run before."""
    start = {"init_from": "@sft"}

    def reward(collect="collect", **fields):
        files = {
            "comparisons": f"@{collect}/comparisons.jsonl",
            "comparisons_test": "@collect/comparisons_test.jsonl",
        }
        return {"config": "reward.py:tiny"} | start | files | fields

    def ppo(**fields):
        scorer = {"reward_model": "@reward"}
        return {"config": "ppo.py:tiny"} | start | scorer | fields

    def dpo(**fields):
        pairs = {"pairs": "@pairs/comparisons.jsonl"}
        return {"config": "dpo.py:tiny"} | start | pairs | fields

    return {
        "sft": {"config": "sft.py:tiny"},
        "collect": {"config": "collect.py:tiny"} | start,
        "collect_unbalanced": {"config": "collect.py:tiny", "length_bucket": 0} | start,
        "reward": reward(),
        "reward_unbalanced": reward("collect_unbalanced"),
        "reward_reg_0": reward(score_regularisation=0.0),
        "reward_reg_0.001": reward(score_regularisation=0.001),
        "reward_reg_0.1": reward(score_regularisation=0.1),
        "ppo": ppo(),
        "ppo_no_baseline": ppo(baseline="none"),
        "ppo_whitened": ppo(baseline="none", whiten_advantages=True),
        "ppo_no_sft": ppo(beta_sft=0.0),
        "pairs": {
            "config": "pairs.py:tiny",
            "reward_model": "@reward",
            "prompts": "@data/prompts.jsonl",
        }
        | start,
        "dpo": dpo(),
        "ipo": dpo(loss="ipo"),
        "evaluate": {
            "config": "evaluate.py:tiny",
            "models": "sft=@sft,ppo=@ppo,dpo=@dpo",
            "reward_model": "@reward",
        },
    }


# What each claim of the paper compares.
CLAIMS = {
    1: ("reward", "reward_unbalanced"),
    2: ("reward_reg_0", "reward_reg_0.001", "reward", "reward_reg_0.1"),
    3: ("ppo", "ppo_no_baseline", "ppo_whitened"),
    4: ("ppo", "ppo_no_sft"),
    5: ("ppo", "dpo", "ipo"),
    6: ("ppo",),
}


def get_config(preset="tiny"):
    common.check_preset(preset, ("tiny",), "paper")
    c = ConfigDict()
    c.data = common.data(preset)
    c.seed = 0  # of the intervals
    c.seeds = (0, 1, 2, 3, 4)
    c.claims = (1, 2, 3, 4, 5, 6)
    c.workers = 2  # runs at a time; each has its share of the cores
    return c
