"""Admission tests of the testbed's worlds: does each mechanism have work to do?

python -m benchmarks.admission [--worlds 100 101 102] [--workdir=runs/admission]

In each world an SFT model, comparisons, a reward model and a PPO policy without the SFT
term are trained as configs/pipeline.py:tiny does, and measured against `BOUNDS`. A
world that fails is mended in rlhf_jax/data/testbed/; no claim is changed for it. A run
that is stopped goes on with the same command. The table is printed and written to
WORKDIR/WORLD/admission.json. Worlds 0 to 9 are refused: they are for published results.

The verdict is on the mean over the worlds, for each number of one world has the noise
of its own SFT model and reward model: 1 point for a bag of words, 5 for right above
wrong. Most of B / W, the variance of scores between prompts over that within, is the
level of prompts that allow one answer. Nobody compares answers to them, so every reward
model puts that level somewhere else; this is what a pairwise loss leaves open.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from sklearn.model_selection import GroupKFold

from configs import pipeline as pipeline_config
from configs import select_prompts
from rlhf_jax.data import sources
from rlhf_jax.data.encoding import encode_pairs, encode_prompts, response_ids
from rlhf_jax.data.records import Comparison, Prompt, Response, read_records
from rlhf_jax.data.testbed.kinds import spoken
from rlhf_jax.data.testbed.quality import true_quality
from rlhf_jax.data.testbed.styles import draw_style
from rlhf_jax.data.testbed.tasks import Task, key_of, task_of
from rlhf_jax.evaluation.answers import Answers, scores
from rlhf_jax.evaluation.baselines import FOLDS, bag_of_words_margins
from rlhf_jax.evaluation.candidates import candidate_rewards, sample_candidates
from rlhf_jax.evaluation.score_variance import score_variance
from rlhf_jax.files import write_json
from rlhf_jax.launching import pipeline
from rlhf_jax.launching.stage import run_stages
from rlhf_jax.rewards.rewards import Rewards
from rlhf_jax.stages.select_prompts import agreement_of_halves
from rlhf_jax.terminal import print_table
from rlhf_jax.training import weights
from rlhf_jax.training.allocator import keep_freed_memory
from rlhf_jax.training.metrics import read_metrics
from rlhf_jax.training.workdir import read_summary

RATIO = "scores/between_over_within"
# Measure -> its least and largest value.
BOUNDS = {
    "sft/right": (0.6, 0.8),  # answers of the SFT model, sampled at temperature 1
    "labels/longer_wins": (0.6, 0.7),  # raw labels
    "labels/criteria_conflict": (0.05, 0.15),  # helpfulness and safety disagree
    "labels/agree_with_truth": (0.75, 0.85),  # after cleaning: the reward's ceiling
    "reward/bag_of_words": (0.0, 0.58),  # of held-out labels
    "reward/bigrams": (0.0, 0.62),
    "reward/accuracy": (0.7, 1.0),
    "reward/right_above_wrong": (0.75, 1.0),  # at equal style
    RATIO: (0.7, 2.0),  # variance of scores, of prompts: B / W
    "scores/kappa": (0.5, 1.0),  # selection by two sets of K answers
    "ppo/largest_kl": (6.0, math.inf),  # nats, without the SFT term
}
STAGES = ("sft", "collect", "prepare_comparisons", "reward", "ppo")
ITERATIONS = 100
K = 8
STYLES = 6  # pairs of a right and a wrong answer to each prompt
NUM_PROMPTS = 400  # for the scores of K answers


def get_config(world: int):
    """Return the pipeline's config with a longer PPO that has no SFT term."""
    if world < 10:
        raise ValueError(
            f"World {world} is for published results, and is not looked at before they "
            "are made: use worlds from 100 on."
        )
    c = pipeline_config.get_config("tiny")
    c.seed = world
    c.ppo.beta_sft = 0.0
    c.ppo.total_steps = ITERATIONS
    c.ppo.eval_every = 0
    return c


def run(config, folder: Path) -> None:
    """Run the stages that the tests need."""
    config.data.testbed.seed = config.data.annotators.seed = config.seed
    data = sources.data_folder(config.data, folder)
    stages = pipeline.stage_configs(config, folder, data)
    stages = {name: stages[name] for name in STAGES}
    run_stages(config, folder, stages, parts={name: [name] for name in stages})


def measure(config, folder: Path) -> dict[str, float]:
    """Measure everything in `BOUNDS` on the runs in a folder."""
    selection = select_prompts.get_config("tiny")
    prompts = read_records(folder / "data" / "prompts.jsonl", Prompt)[:NUM_PROMPTS]
    evaluation = read_records(folder / "data" / "eval_prompts.jsonl", Prompt)
    tokenizer = sources.tokenizer_of(folder / "sft")
    policy = weights.load_model(folder / "sft", dtype="float32", param_dtype="float32")
    scorer = weights.load_model(
        folder / "reward", dtype="float32", param_dtype="float32"
    )

    def sampled(records: list[Prompt], count: int, key: int):
        kept, ids = encode_prompts(records, tokenizer, config.ppo.max_prompt_tokens)
        groups = sample_candidates(
            policy,
            ids,
            tokenizer,
            jax.random.key(key),
            count=count,
            batch_size=64,
            max_new_tokens=config.ppo.max_response_tokens,
            temperature=1.0,
        )
        return kept, ids, groups

    kept, ids, groups = sampled(prompts, 2 * K, key=0)
    scored = candidate_rewards(
        Rewards(selection, folder),
        scorer,
        kept,
        ids,
        groups,
        pad_id=tokenizer.pad_id,
        batch_size=16,
        end_penalty=selection.missing_end_penalty,
    ).scores
    asked, _, answers = sampled(evaluation, 1, key=1)
    return {
        "sft/right": right_share(asked, [group[0] for group in answers]),
        **labels(folder),
        **bags(config, folder, tokenizer),
        "reward/accuracy": read_summary(folder / "reward")["eval/accuracy"],
        "reward/right_above_wrong": right_above_wrong(scorer, evaluation, tokenizer),
        RATIO: score_variance(scored).ratio,
        "scores/kappa": agreement_of_halves(scored, selection.epsilon) or 0.0,
        "ppo/largest_kl": largest_kl(folder / "ppo"),
    }


def right_share(prompts: Sequence[Prompt], responses: Sequence[Response]) -> float:
    """Return the share of responses that answer their prompt rightly."""
    return float(
        np.mean(
            [
                key_of(task_of(prompt)).is_right(response.text, spoken(response.text))
                for prompt, response in zip(prompts, responses, strict=True)
            ]
        )
    )


def labels(folder: Path) -> dict[str, float]:
    """Measure the annotators: their liking for length, the conflict of their criteria,
    and the agreement of the cleaned labels with true quality."""
    raw = read_records(folder / "collect" / "comparisons.jsonl", Comparison)
    clear = [c for c in raw if c.preference != "tie"]
    more = np.array([len(c.chosen.split()) - len(c.rejected.split()) for c in clear])
    against = {"a", "b"}
    criteria = [{c.criteria["helpfulness"], c.criteria["safety"]} for c in raw]
    prepared = [
        c
        for name in ("comparisons", "comparisons_test")
        for c in read_records(
            folder / "prepare_comparisons" / f"{name}.jsonl", Comparison
        )
    ]
    better = [
        true_quality(c.prompt, c.chosen) > true_quality(c.prompt, c.rejected)
        for c in prepared
    ]
    return {
        "labels/longer_wins": float(np.mean(more[more != 0] > 0)),
        "labels/criteria_conflict": float(np.mean([x == against for x in criteria])),
        "labels/agree_with_truth": float(np.mean(better)),
    }


def bags(config, folder: Path, tokenizer) -> dict[str, float]:
    """Return the share of the labels that counting words and bigrams gets, where each
    of five parts of the prompts is judged by what the other four teach."""
    prepared = folder / "prepare_comparisons"
    records = [
        record
        for name in ("comparisons", "comparisons_test")
        for record in read_records(prepared / f"{name}.jsonl", Comparison)
    ]
    _, pairs, _ = encode_pairs(
        records,
        tokenizer=tokenizer,
        max_prompt_tokens=config.reward.max_prompt_tokens,
        max_response_tokens=config.reward.max_response_tokens,
        too_long=config.reward.too_long,
    )
    groups = [hash(tuple(prompt)) for prompt, _, _ in pairs]
    found: dict[str, list] = {"bag_of_words": [], "bigrams": []}
    for fitted, judged in GroupKFold(FOLDS).split(pairs, groups=groups):
        parts = [[pairs[i] for i in part] for part in (fitted, judged)]
        for longest, margins in enumerate(found.values(), start=1):
            margins.extend(bag_of_words_margins(*parts, longest=longest))
    return {
        f"reward/{name}": float(np.mean(np.array(x) > 0)) for name, x in found.items()
    }


def right_above_wrong(scorer, prompts: Sequence[Prompt], tokenizer) -> float:
    """Return how often a right answer scores above the wrong one in the same style,
    phrase by phrase, over `STYLES` pairs of each prompt."""
    rng = np.random.default_rng(0)
    asked = [prompt for prompt in prompts for _ in range(STYLES)]
    pairs = [one_style(task_of(prompt), rng) for prompt in asked]
    kept, ids = encode_prompts(asked, tokenizer, 10**6)
    right, wrong = (
        scores(
            scorer,
            Answers(
                kept,
                ids,
                [
                    Response(t, True, response_ids(Response(t), tokenizer))
                    for t in texts
                ],
            ),
            pad_id=tokenizer.pad_id,
            batch_size=64,
        )
        for texts in zip(*pairs, strict=True)
    )
    return float(np.mean(right > wrong))


def one_style(task: Task, rng: np.random.Generator) -> tuple[str, str]:
    """Return a right and a wrong answer to a task, in one form and one style."""
    key = key_of(task)
    style = draw_style(task, rng, suited=bool(rng.random() < 0.5))
    form = int(rng.integers(min(len(key.answers), len(key.wrong))))
    return style.dress(key.answers[form]), style.dress(key.wrong[form])


def largest_kl(folder: Path) -> float:
    """Return the largest KL divergence of PPO's iterations, as a mean over five."""
    kl = [row["objective/kl"] for row in read_metrics(folder) if "objective/kl" in row]
    return float(np.convolve(kl, np.ones(5) / 5, mode="valid").max())


def verdicts(measured: dict[str, float]) -> dict[str, bool]:
    """Return whether each measure lies within its bounds."""
    return {name: low <= measured[name] <= high for name, (low, high) in BOUNDS.items()}


def mean_over_worlds(worlds: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each measure over the worlds, the geometric one of the ratio
    of variances."""
    means = {name: float(np.mean([w[name] for w in worlds])) for name in BOUNDS}
    means[RATIO] = float(np.exp(np.mean([np.log(w[RATIO]) for w in worlds])))
    return means


def table(worlds: dict[int, dict[str, float]]) -> list[list[str]]:
    """Return the title and a row for each measure: worlds, mean, bounds, verdict. A
    star marks numbers outside the bounds."""
    columns = [*worlds.values(), mean_over_worlds(list(worlds.values()))]
    passed = [verdicts(measured) for measured in columns]
    rows = [["measure", *map(str, worlds), "mean", "bounds", "within"]]
    for name, (low, high) in BOUNDS.items():
        cells = [
            f"{measured[name]:.3f}{' ' if ok[name] else '*'}"
            for measured, ok in zip(columns, passed, strict=True)
        ]
        verdict = "yes" if passed[-1][name] else "NO"
        rows.append([name, *cells, f"{low:g} to {high:g}", verdict])
    return rows


def main() -> None:
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", type=int, nargs="+", default=[100, 101, 102])
    parser.add_argument("--workdir", type=Path, default=Path("runs/admission"))
    arguments = parser.parse_args()
    measured = {}
    for world in arguments.worlds:
        config, folder = get_config(world), arguments.workdir / str(world)
        run(config, folder)
        measured[world] = measure(config, folder)
        write_json(folder / "admission.json", measured[world])
    title, *rows = table(measured)
    print_table("Admission", title, rows)


if __name__ == "__main__":
    main()
