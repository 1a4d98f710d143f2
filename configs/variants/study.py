"""The share of right answers: every variant of configs/variants minus its SFT start.

Run: python launch/reproduce.py --config=configs/variants/study.py:tiny \
         --workdir=runs/variants

Every seed has its own world, SFT model and runs, and all its models are evaluated in
one run, on the same prompts. A variant of PPO takes about 80 seconds of processor time,
a seed 17 minutes. Start the same command again, and it continues where it stopped. The
table is results/variants.md; every difference is expected above 0.
"""

from collections.abc import Sequence

from ml_collections import ConfigDict

from configs import common
from configs.variants import base
from rlhf_jax.evaluation.study import Claim, Measure

PRESETS = ("tiny",)
NAME = "variants"  # of the files of results
CURVES = ()  # no curves
POLICY_GRADIENTS = (
    "grpo",
    "dr_grpo",
    "dapo",
    "gspo",
    "cispo",
    "rloo",
    "remax",
    "reinforce_pp",
)
PREFERENCES = ("kto", "orpo", "online_dpo")
RIGHT = "rewards.is_right.mean"
CLAIMS = tuple(
    Claim(
        number,
        f"{name} raises the share of right answers",
        "Its share of right answers is above that of its SFT start.",
        Measure(
            f"share of right answers: {name} minus SFT",
            f"evaluate:models.{name}.{RIGHT}",
            f"evaluate:models.sft.{RIGHT}",
        ),
        policies=(name,),
    )
    for number, name in enumerate((*POLICY_GRADIENTS, *PREFERENCES), start=1)
)


def get_config(preset="tiny"):
    common.check_preset(preset, PRESETS, "variants/study")
    c = ConfigDict()
    c.study = "variants.study"
    c.data = common.data(preset)
    c.seed = 100
    c.seeds = (100, 101, 102)
    c.claims = tuple(range(1, len(CLAIMS) + 1))
    c.verdicts = True
    c.results = "results"
    c.workers = 1
    return c


def runs(claims: Sequence[Claim]) -> dict[str, dict]:
    """Return the runs by name, each with its config file and the fields that it
    changes. "@name" stands for the folder of another run, which is done first."""
    start = {"init_from": "@sft"}

    def variant(name, **fields):
        return {"config": f"variants/{name}.py:tiny", **start, **fields}

    table = {"sft": {"config": "sft.py:tiny"}, "pairs": variant("pairs")}
    table |= {name: variant(name) for name in POLICY_GRADIENTS}
    pairs = {"pairs": "@pairs/comparisons.jsonl"}
    table |= {name: variant(name, **pairs) for name in ("kto", "orpo")}
    # Two rounds of configs/variants/online_dpo.py.
    dpo = {"config": "dpo.py:tiny", "beta_sft": 0.0, "eval_every": 0, "epochs": 1}
    table |= {
        "online_dpo_1": {**dpo, **start, **pairs},
        "pairs_2": variant("pairs", init_from="@online_dpo_1"),
        "online_dpo": {
            **dpo,
            "init_from": "@online_dpo_1",
            "reference_from": "@sft",
            "pairs": "@pairs_2/comparisons.jsonl",
        },
    }
    evaluated = [name for claim in claims for name in claim.policies]
    table["evaluate"] = {
        "config": "evaluate.py:tiny",
        "models": ",".join(f"{name}=@{name}" for name in ("sft", *evaluated)),
        "rewards": base.IS_RIGHT,
        "judge": "rewards",
    }
    return table
