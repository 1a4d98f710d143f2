"""The claims of ChatGLM-RLHF (arXiv 2404.00934) on the testbed, and their runs.

Run: python launch/reproduce.py --config=configs/paper.py:tiny --workdir=runs/paper

Every seed has its own world, annotators, SFT model, comparisons and reward model. The
runs of a claim differ only in the fields named here.
"""

from collections.abc import Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from configs import common

PRESETS = ("tiny",)
NAME = "claims"  # of the files of results
HAS_PLOTS = True  # frontier.png and training.png
# The runs that each claim compares: reward models, each evaluated alone, and policies,
# evaluated together against SFT.
EVALUATED_ALONE = {
    1: ("reward", "reward_unbalanced"),
    2: ("reward_reg_0", "reward", "reward_reg_0.1"),
}
EVALUATED_TOGETHER = {
    3: ("ppo", "ppo_whitened", "ppo_no_baseline"),
    4: ("ppo", "ppo_no_sft"),
    5: ("ppo", "dpo"),
    6: ("ppo", "ppo_selected"),
    7: ("rloo", "grpo", "remax", "ipo"),  # other algorithms than the paper's
}


class Measure(NamedTuple):
    """The difference between a number of one run and of another, seed by seed.

    `ours` and `theirs` name a run and a key of its summary.json, "run:key.key"; "" is
    zero. The claim expects the difference "above" or "below" `bound`.
    """

    claim: int
    text: str
    ours: str
    theirs: str
    expected: str
    bound: float = 0.0


def _score(run: str, key: str) -> str:
    return f"evaluate_{run}:reward_model.{key}"


def _policy(run: str, key: str) -> str:
    return f"evaluate:models.{run}.{key}"


MEASURES = (
    Measure(
        1,
        "correlation of score and length, within pairs: balanced minus not",
        _score("reward", "length_correlation_within"),
        _score("reward_unbalanced", "length_correlation_within"),
        "below",
    ),
    Measure(
        1,
        "agreement with true quality: balanced minus not",
        _score("reward", "accuracy"),
        _score("reward_unbalanced", "accuracy"),
        "above",
    ),
    *(
        Measure(
            2,
            f"spread of scores: regularised by {strength} minus not",
            _score(run, "score_std"),
            _score("reward_reg_0", "score_std"),
            "below",
        )
        for run, strength in (
            ("reward", 0.01),
            ("reward_reg_0.1", 0.1),
        )
    ),
    *(
        Measure(
            2,
            f"agreement with true quality: regularised by {strength} minus not",
            _score(run, "accuracy"),
            _score("reward_reg_0", "accuracy"),
            "above",
            -0.02,
        )
        for run, strength in (
            ("reward", 0.01),
            ("reward_reg_0.1", 0.1),
        )
    ),
    Measure(
        3,
        "variance of the reward between intents: with baseline minus without",
        _policy("ppo", "baselined_score_variance_between_intents"),
        _policy("ppo", "score_variance_between_intents"),
        "below",
    ),
    Measure(
        3,
        "KL: reference baseline minus none",
        _policy("ppo", "kl"),
        _policy("ppo_no_baseline", "kl"),
        "below",
    ),
    Measure(
        3,
        "KL: reference baseline minus whitened advantages",
        _policy("ppo", "kl"),
        _policy("ppo_whitened", "kl"),
        "below",
    ),
    Measure(
        4,
        "share that knows its name: SFT term minus none",
        _policy("ppo", "skills.name.right"),
        _policy("ppo_no_sft", "skills.name.right"),
        "above",
    ),
    Measure(
        4,
        "share of valid JSON: SFT term minus none",
        _policy("ppo", "skills.json.valid"),
        _policy("ppo_no_sft", "skills.json.valid"),
        "above",
    ),
    *(
        Measure(
            claim,
            f"net wins of {run} over SFT",
            _policy(run, "against_baseline.net"),
            "",
            "above",
        )
        for claim in (5, 7)
        for run in EVALUATED_TOGETHER[claim]
    ),
    Measure(
        5,
        "tokens a response: dpo minus ppo",
        _policy("dpo", "length"),
        _policy("ppo", "length"),
        "above",
    ),
    Measure(
        6,
        "true quality: selected prompts minus all",
        _policy("ppo_selected", "quality.mean"),
        _policy("ppo", "quality.mean"),
        "above",
        -0.1,
    ),
    Measure(
        6,
        "share of rollouts saved",
        "selection:rollouts saved",
        "",
        "above",
    ),
)


def get_config(preset="tiny"):
    common.check_preset(preset, PRESETS, "paper")
    c = ConfigDict()
    # The module in configs/ that names the runs and what is compared.
    c.study = "paper"
    c.data = common.data(preset)
    # The seed of the bootstrap intervals within a run. [0, inf)
    c.seed = 0
    # The seeds, each with its own world, annotators, models and runs.
    c.seeds = (0, 1, 2, 3, 4)
    # The claims of MEASURES to show; claim 7 is not of the paper.
    c.claims = (1, 2, 3, 4, 5, 6)
    # The folder of the tables and plots.
    c.results = "results"
    # Does this many runs at the same time, each on its share of the cores. [1, 1024]
    c.workers = 2
    return c


def runs(claims: Sequence[int]) -> dict[str, dict]:
    """Return the runs by name, each with its config file and the fields that it
    changes. "@name" stands for the folder of another run, which is done first. The
    policies of `claims` are evaluated together."""
    start, scorer = {"init_from": "@sft"}, {"reward_model": "@reward"}

    def prepared(**fields):
        return {
            "config": "prepare_comparisons.py:tiny",
            "comparisons": "@collect/comparisons.jsonl",
            "tokenizer": "@sft",
            **fields,
        }

    def reward(prepared="prepared", **fields):
        return {
            "config": "reward.py:tiny",
            "comparisons": f"@{prepared}/comparisons.jsonl",
            "comparisons_test": f"@{prepared}/comparisons_test.jsonl",
            **start,
            **fields,
        }

    def ppo(**fields):
        return {"config": "ppo.py:tiny", **start, **scorer, **fields}

    def dpo(**fields):
        pairs = "@pairs/comparisons.jsonl"
        return {"config": "dpo.py:tiny", "pairs": pairs, **start, **fields}

    table = {
        "sft": {"config": "sft.py:tiny"},
        "collect": {"config": "collect.py:tiny", **start},
        "prepared": prepared(),
        "unbalanced": prepared(length_bucket=0),
        "reward": reward(),
        "reward_unbalanced": reward("unbalanced"),
        "reward_reg_0": reward(score_regularisation=0.0),
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
    for name in {name for names in EVALUATED_ALONE.values() for name in names}:
        table[f"evaluate_{name}"] = {
            "config": "evaluate.py:tiny",
            "models": "sft=@sft",
            "reward_model": f"@{name}",
        }
    policies = [
        "sft",
        *(name for claim in claims for name in EVALUATED_TOGETHER.get(claim, ())),
    ]
    table["evaluate"] = {
        "config": "evaluate.py:tiny",
        "models": ",".join(f"{name}=@{name}" for name in dict.fromkeys(policies)),
        **scorer,
    }
    return table
