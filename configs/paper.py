"""The claims of ChatGLM-RLHF (arXiv 2404.00934) on the testbed, and their runs.

Run: python launch/reproduce.py --config=configs/paper.py:quick --workdir=runs/quick
     python launch/reproduce.py --config=configs/paper.py:full --workdir=runs/paper

"quick" shows three claims in three worlds, as curves and effects without verdicts;
"full" tests all nine in eight. Everything here was fixed before the worlds of `seeds`
were first run: predictions, arms, the one primary measure of each claim and its bound.
All settings were chosen in worlds from 100 on.

Every seed has its own world, annotators, SFT model, comparisons and reward model. The
runs of a claim differ only in the fields named here.
"""

from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from configs import common
from rlhf_jax.evaluation.equal_kl import at_kl, gain_by_root_kl, mean_to_kl
from rlhf_jax.evaluation.study import Claim, Measure, World

PRESETS = ("quick", "full")
NAME = "claims"  # of the files of results
CURVES = ("ppo", "ppo_no_sft", "ppo_balanced", "ppo_unbalanced")  # of training.png
ITERATIONS = 48  # of every PPO run, but where rollouts are to be equal
PPO_ARMS = ("ppo_weak", "ppo", "ppo_strong")  # one algorithm, three strengths
DPO_ARMS = ("dpo_weak", "dpo", "dpo_strong")
OPEN = ("writing", "role_play", "open_question")  # intents that gain, in the paper
EXACT = ("mathematics", "logic")  # intents that hardly gain
WIDTHS = ("reward_quarter", "reward_half", "reward")  # the width doubles


def _policy(run: str, key: str) -> str:
    return f"evaluate:models.{run}.{key}"


def _drift(run: str):
    """The spread of the mean score over the validations of the second half of training,
    in units of the spread of scores, which no rescaling changes."""

    def drift(world: World) -> float:
        means = world.series(run, "validation/score_mean")
        spreads = world.series(run, "validation/score_std")
        half = len(means) // 2
        return float(means[half:].std(ddof=1) / spreads[half:].mean())

    return drift


def _per_root_kl(run: str, key: str):
    def gained(world: World) -> float:
        gain = world.number(_policy(run, key)) - world.number(_policy("sft", key))
        return gain_by_root_kl(gain, world.number(_policy(run, "kl")))

    return gained


def _family(world: World, arms: Sequence[str], key: str):
    """The KL of a family of policies, SFT among them, and their numbers."""
    return [
        [world.number(_policy(arm, where)) for arm in ("sft", *arms)]
        for where in ("kl", key)
    ]


def _at_kl_of(run: str, arms: Sequence[str], key: str):
    return lambda world: at_kl(
        world.number(_policy(run, "kl")), *_family(world, arms, key)
    )


def _frontier(arms: Sequence[str], others: Sequence[str], key: str):
    """The mean of a number over the KL that both families of policies reach."""

    def height(world: World) -> float:
        kls, values = _family(world, arms, key)
        reached = min(max(kls), max(_family(world, others, key)[0]))
        return mean_to_kl(reached, kls, values)

    return height


def _net_of(run: str, intents: Sequence[str]):
    def mean(world: World) -> float:
        where = _policy(run, "by_intent")
        return float(np.mean([world.number(f"{where}.{i}.net") for i in intents]))

    return mean


def _crossing(baseline: str, predicted: float):
    """How many doublings of B / W lie between a predicted crossing and the one that the
    variance of the gradient shows."""
    where = f"baselines:gradient.crossing.{baseline}"
    return lambda world: float(np.log2(world.number(where) / predicted))


def _best_bag(world: World) -> float:
    return max(
        world.number(f"reward:eval/{bag}") for bag in ("bag_of_words", "bag_of_bigrams")
    )


def _accuracy_per_doubling(world: World) -> float:
    accuracies = [world.number(f"{run}:eval/accuracy") for run in WIDTHS]
    return float(np.polyfit(range(len(WIDTHS)), accuracies, 1)[0])


def _net_wins(run: str, text: str) -> Measure:
    return Measure(f"net wins over SFT: {text}", _policy(run, "against_baseline.net"))


CLAIMS = (
    Claim(
        1,
        "Balancing by length makes better policies",
        "Annotators with a taste for long answers (0.3 logits a word) teach it to the "
        "reward model. Balanced by length it has fewer pairs and orders biased labels "
        "worse, yet PPO on it ends at a higher true quality.",
        Measure(
            "true quality of PPO's policy: balanced minus not",
            _policy("ppo_balanced", "quality.mean"),
            _policy("ppo_unbalanced", "quality.mean"),
        ),
        policies=("ppo_balanced", "ppo_unbalanced"),
        others=(
            _net_wins("ppo_balanced", "balanced"),
            _net_wins("ppo_unbalanced", "not balanced"),
            Measure(
                "tokens a response: balanced minus not",
                _policy("ppo_balanced", "length"),
                _policy("ppo_unbalanced", "length"),
                "below",
            ),
            Measure(
                "agreement with true quality: balanced minus not",
                "reward_balanced:eval/true_accuracy",
                "reward_unbalanced:eval/true_accuracy",
            ),
            Measure(
                "agreement with biased labels: balanced minus not",
                "reward_balanced:eval/accuracy",
                "reward_unbalanced:eval/accuracy",
                "below",
            ),
        ),
        checks=(
            Measure(
                "correlation of score and length, within pairs: balanced minus not",
                "reward_balanced:eval/length_correlation_within",
                "reward_unbalanced:eval/length_correlation_within",
                "below",
            ),
        ),
    ),
    Claim(
        2,
        "Regularised scores are stabler",
        "The ranking loss does not see the mean of the scores, which therefore drifts "
        "from checkpoint to checkpoint; the penalty on squared scores holds it, also "
        "relative to the spread of the scores, which it makes smaller.",
        Measure(
            "drift of the mean score over checkpoints, in spreads: 0.01 minus 0",
            _drift("reward"),
            _drift("reward_reg_0"),
            "below",
        ),
        runs=("reward_reg_0", "reward_reg_0.1"),
        policies=("ppo", "ppo_reg_0"),
        others=(
            Measure(
                "the same drift: 0.1 minus 0",
                _drift("reward_reg_0.1"),
                _drift("reward_reg_0"),
                "below",
            ),
            Measure(
                "agreement with held-out labels: 0.01 minus 0",
                "reward:eval/accuracy",
                "reward_reg_0:eval/accuracy",
                "within",
                0.02,
            ),
            Measure(
                "agreement with held-out labels: 0.1 minus 0",
                "reward_reg_0.1:eval/accuracy",
                "reward_reg_0:eval/accuracy",
                "within",
                0.02,
            ),
            Measure(
                "KL of PPO's policy, nats: 0.01 minus 0",
                _policy("ppo", "kl"),
                _policy("ppo_reg_0", "kl"),
                "below",
            ),
            Measure(
                "true quality of PPO's policy: 0.01 minus 0",
                _policy("ppo", "quality.mean"),
                _policy("ppo_reg_0", "quality.mean"),
            ),
        ),
        checks=(
            Measure(
                "spread of the scores: 0.01 minus 0",
                "reward:eval/score_std",
                "reward_reg_0:eval/score_std",
                "below",
            ),
        ),
    ),
    Claim(
        3,
        "A reference answer helps where prompts differ more than answers",
        "One sampled answer as baseline turns the variance W + B of a score into 2 W: "
        "by the scores alone it helps from B = W on. Gradients weigh long answers "
        "more, whose scores differ more within a prompt. With B made of numbers that "
        "belong to the prompt, which no pairwise loss sees, the variance of the policy "
        "gradient crosses that without a baseline at B = 1.5 W, within a factor of two "
        "(1.6 in world 100).",
        Measure(
            "doublings of B / W between the crossing and 1.5, one answer",
            _crossing("mean of 1", 1.5),
            None,
            "within",
            1.0,
        ),
        runs=("baselines",),
        policies=("ppo", "ppo_none", "ppo_offset", "ppo_offset_none"),
        others=(
            Measure(
                "doublings of B / W between the crossing and 0.5, four answers",
                _crossing("mean of 4", 0.5),
                None,
                "within",
                1.0,
            ),
            Measure("B / W of the reward model", "baselines:ratio"),
            Measure(
                "score gained by root of KL: one reference minus none",
                _per_root_kl("ppo", "score"),
                _per_root_kl("ppo_none", "score"),
            ),
            Measure(
                "the same with numbers of the prompts added (spread 2)",
                _per_root_kl("ppo_offset", "score"),
                _per_root_kl("ppo_offset_none", "score"),
            ),
            Measure(
                "true quality, numbers added: one reference minus none",
                _policy("ppo_offset", "quality.mean"),
                _policy("ppo_offset_none", "quality.mean"),
            ),
        ),
    ),
    Claim(
        4,
        "The SFT term keeps skills that a KL penalty does not",
        "Skills that RL's prompts never ask for are kept better with the SFT term than "
        "without it at the same KL, by the log-probability of right answers.",
        Measure(
            "log-probability of right answers, nats: SFT term minus none at its KL",
            _policy("ppo", "skills_logprob"),
            _at_kl_of("ppo", ("ppo_no_sft_near", "ppo_no_sft"), "skills_logprob"),
        ),
        policies=("ppo", "ppo_no_sft_near", "ppo_no_sft"),
        others=(
            Measure(
                "the same at the same number of iterations",
                _policy("ppo", "skills_logprob"),
                _policy("ppo_no_sft", "skills_logprob"),
            ),
            Measure(
                "share of right answers: SFT term minus none at its KL",
                _policy("ppo", "skills_right"),
                _at_kl_of("ppo", ("ppo_no_sft_near", "ppo_no_sft"), "skills_right"),
            ),
            Measure(
                "true quality: SFT term minus none at its KL",
                _policy("ppo", "quality.mean"),
                _at_kl_of("ppo", ("ppo_no_sft_near", "ppo_no_sft"), "quality.mean"),
            ),
            Measure(
                "true quality at the same number of iterations",
                _policy("ppo", "quality.mean"),
                _policy("ppo_no_sft", "quality.mean"),
            ),
        ),
        checks=(
            Measure(
                "KL, nats: SFT term minus none",
                _policy("ppo", "kl"),
                _policy("ppo_no_sft", "kl"),
                "below",
            ),
        ),
    ),
    Claim(
        5,
        "PPO is better than DPO at the same KL",
        "Three strengths of each make a frontier of true quality over the KL "
        "divergence; PPO's, with its SFT term, lies above that of DPO, which has none "
        "in the paper, and DPO's answers are longer.",
        Measure(
            "mean true quality over the shared range of KL: PPO minus DPO",
            _frontier(PPO_ARMS, DPO_ARMS, "quality.mean"),
            _frontier(DPO_ARMS, PPO_ARMS, "quality.mean"),
        ),
        policies=(*PPO_ARMS, *DPO_ARMS),
        others=(
            _net_wins("ppo", "PPO"),
            _net_wins("dpo", "DPO"),
            Measure(
                "net wins at equal length: PPO minus DPO",
                _policy("ppo", "against_baseline.length_controlled_net"),
                _policy("dpo", "against_baseline.length_controlled_net"),
            ),
            Measure(
                "mean tokens over the shared range of KL: PPO minus DPO",
                _frontier(PPO_ARMS, DPO_ARMS, "length"),
                _frontier(DPO_ARMS, PPO_ARMS, "length"),
                "below",
            ),
            Measure(
                "log-probability of skills over the same range: PPO minus DPO",
                _frontier(PPO_ARMS, DPO_ARMS, "skills_logprob"),
                _frontier(DPO_ARMS, PPO_ARMS, "skills_logprob"),
            ),
        ),
    ),
    Claim(
        6,
        "Prompts whose scores vary are worth their selection",
        "A fifth of the prompts allow one answer and teach nothing. PPO on the prompts "
        "that eight answers select beats PPO on as many prompts at random, which goes "
        "on for as many more iterations as the selection took responses.",
        Measure(
            "true quality at equal rollouts: selected minus random",
            _policy("ppo_selected", "quality.mean"),
            _policy("ppo_random", "quality.mean"),
        ),
        policies=("ppo", "ppo_selected", "ppo_random"),
        others=(
            Measure(
                "true quality at equal iterations: selected minus all prompts",
                _policy("ppo_selected", "quality.mean"),
                _policy("ppo", "quality.mean"),
            ),
            Measure(
                "agreement of selections by half of the answers each (kappa)",
                "selection:kappa of halves",
            ),
        ),
        checks=(Measure("share of prompts left out", "selection:rollouts saved"),),
    ),
    Claim(
        7,
        "Open tasks gain more than exact ones",
        "Alignment helps writing, role-play and open questions more than mathematics "
        "and logic, in net wins, whose scale is the same for every task.",
        Measure(
            "net wins of PPO: open tasks minus exact ones",
            _net_of("ppo", OPEN),
            _net_of("ppo", EXACT),
        ),
        policies=("ppo", "dpo"),
        others=(
            Measure(
                "net wins of DPO: open tasks minus exact ones",
                _net_of("dpo", OPEN),
                _net_of("dpo", EXACT),
            ),
        ),
    ),
    Claim(
        8,
        "A larger reward model is hardly better",
        "In the paper 6B to 32B took the accuracy from 64 to 68 %. Here a quarter, "
        "half and the whole width, on the same pairs: a doubling, four times the "
        "parameters of a layer, changes the accuracy by less than four points.",
        Measure(
            "accuracy on held-out labels, per doubling of the width",
            _accuracy_per_doubling,
            None,
            "within",
            0.04,
        ),
        runs=("reward", "reward_half", "reward_quarter"),
        others=(
            Measure(
                "accuracy: width 128 minus 64",
                "reward:eval/accuracy",
                "reward_half:eval/accuracy",
                "within",
                0.04,
            ),
            Measure(
                "accuracy: width 64 minus 32",
                "reward_half:eval/accuracy",
                "reward_quarter:eval/accuracy",
                "within",
                0.04,
            ),
        ),
    ),
    Claim(
        9,
        "The reward model reads more than words",
        "On held-out labels it is right more often than the better one of two logistic "
        "regressions, on counts of tokens and of pairs of tokens.",
        Measure(
            "accuracy on held-out labels: reward model minus the better bag",
            "reward:eval/accuracy",
            _best_bag,
        ),
        runs=("reward",),
        others=(
            Measure(
                "reward model minus the bag of words",
                "reward:eval/accuracy",
                "reward:eval/bag_of_words",
            ),
            Measure(
                "reward model minus always the longer",
                "reward:eval/accuracy",
                "reward:eval/always_longer",
            ),
        ),
    ),
)


def get_config(preset="quick"):
    common.check_preset(preset, PRESETS, "paper")
    full = preset == "full"
    c = ConfigDict()
    # The module in configs/ that names the claims and their runs.
    c.study = "paper"
    c.data = common.data("tiny")
    # The seed of the bootstrap intervals within a run. [0, inf)
    c.seed = 0
    # The seeds, each with its own world, annotators, models and runs.
    c.seeds = tuple(range(8)) if full else (0, 1, 2)
    # The numbers of the claims to show.
    c.claims = tuple(range(1, 10)) if full else (1, 4, 5)
    # True tests the claims and gives verdicts, at a level that they share; False shows
    # effects and curves alone.
    c.verdicts = full
    # The folder of the tables and plots; "" takes WORKDIR/results.
    c.results = "results" if full else ""
    # Does this many runs at the same time, each on its share of the cores. [1, 1024]
    c.workers = 2
    return c


def runs(claims: Sequence[Claim]) -> dict[str, dict]:
    """Return the runs by name, each with its config file and the fields that it
    changes. "@name" stands for the folder of another run, which is done first; the
    policies of `claims` are evaluated together."""
    start, scorer = {"init_from": "@sft"}, {"reward_model": "@reward"}

    def collect(**fields):
        return {"config": "collect.py:tiny", **start, **fields}

    def prepared(collected="collect", **fields):
        return {
            "config": "prepare_comparisons.py:tiny",
            "comparisons": f"@{collected}/comparisons.jsonl",
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
        steps = {"total_steps": ITERATIONS, "eval_every": 16}
        return {"config": "ppo.py:tiny", **start, **scorer, **steps, **fields}

    def dpo(rate):
        return {
            "config": "dpo.py:tiny",
            "pairs": "@pairs/comparisons.jsonl",
            **start,
            "beta_sft": 0.0,
            "optimizer.learning_rate": rate,
        }

    select = {"config": "select_prompts.py:tiny", **start}
    added = {"rewards": "model=1.0,prompt_offset=2.0"}
    table = {
        "sft": {"config": "sft.py:tiny"},
        "collect": collect(),
        "prepared": prepared(),
        "reward": reward(),
        # 1: people who like length
        "collect_long": collect(**{"data.annotators.length_bias": 0.3}),
        "prepared_balanced": prepared("collect_long"),
        "prepared_unbalanced": prepared("collect_long", length_bucket=0),
        "reward_balanced": reward("prepared_balanced"),
        "reward_unbalanced": reward("prepared_unbalanced"),
        "ppo_balanced": ppo(reward_model="@reward_balanced"),
        "ppo_unbalanced": ppo(reward_model="@reward_unbalanced"),
        # 2: regularisation
        "reward_reg_0": reward(score_regularisation=0.0),
        "reward_reg_0.1": reward(score_regularisation=0.1),
        "ppo_reg_0": ppo(reward_model="@reward_reg_0"),
        # 3: baselines
        "baselines": {
            "config": "compare_baselines.py:tiny",
            "policy": "@sft",
            **scorer,
        },
        "ppo_none": ppo(baseline="none"),
        "ppo_offset": ppo(**added),
        "ppo_offset_none": ppo(baseline="none", **added),
        # 4: the SFT term
        "ppo_no_sft": ppo(beta_sft=0.0),
        "ppo_no_sft_near": ppo(beta_sft=0.0, kl_coef=0.15),
        # 5: PPO and DPO, weaker and stronger
        "ppo": ppo(),
        "ppo_weak": ppo(kl_coef=0.2),
        "ppo_strong": ppo(kl_coef=0.0),
        "pairs": {
            "config": "pairs.py:tiny",
            "prompts": "@data/prompts.jsonl",
            **start,
            **scorer,
        },
        "dpo_weak": dpo(1e-4),
        "dpo": dpo(2e-4),
        "dpo_strong": dpo(4e-4),
        # 6: selection; 8 responses to each of 1,000 prompts are 62 iterations
        "selection": {**select, **scorer},
        "random": {**select, "choose": "random", "random_size_of": "@selection"},
        "ppo_selected": ppo(prompts="@selection/prompts.jsonl"),
        "ppo_random": ppo(prompts="@random/prompts.jsonl", total_steps=ITERATIONS + 62),
        # 8: half and a quarter of the width
        "sft_half": {"config": "sft.py:tiny", "model": "tiny_half"},
        "sft_quarter": {"config": "sft.py:tiny", "model": "tiny_quarter"},
        "reward_half": reward(init_from="@sft_half"),
        "reward_quarter": reward(init_from="@sft_quarter"),
    }
    policies = dict.fromkeys(name for claim in claims for name in claim.policies)
    table["evaluate"] = {
        "config": "evaluate.py:tiny",
        "models": ",".join(f"{name}=@{name}" for name in ("sft", *policies)),
        **scorer,
    }
    return table
