"""Prompt selection: leave out prompts whose responses all score alike.

ChatGLM-RLHF (arXiv 2404.00934), section 3. The policy learns nothing from a prompt
whose responses all have the same score:
1. The policy answers every prompt `samples_per_prompt` times.
2. The answers are scored as in PPO: by the sum of their rewards (the reward model,
   functions, or both), less `missing_end_penalty` where an answer was cut at its limit.
3. Prompts whose scores have a variance below `epsilon` are dropped.
With `choose="random"`, the control, as many prompts are kept at random; where their
number is given, by `random_size` or `random_size_of`, nothing is sampled.
Writes `prompts.jsonl`, for config.prompts of PPO; `rollouts.jsonl`, with every prompt's
variance and its responses, their scores and whether they ended; and `summary.json`,
with the prompts kept by intent, the distribution of the variances, the number of
responses and tokens that were sampled, and how well two selections by half of the
responses each agree.

The paper gives neither the number of samples nor epsilon.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from absl import logging
from sklearn.metrics import cohen_kappa_score

from rlhf_jax.data import sources
from rlhf_jax.data.encoding import encode_prompts
from rlhf_jax.data.records import Prompt, Response, write_records
from rlhf_jax.data.tokenizers.tokenizer import Tokenizer
from rlhf_jax.evaluation.candidates import candidate_rewards, sample_candidates
from rlhf_jax.files import writing_whole
from rlhf_jax.rewards.rewards import FREE, Rewards, Scored
from rlhf_jax.rewards.rewards import check_options as check_rewards
from rlhf_jax.training import model_checks, weights
from rlhf_jax.training.inputs import agree
from rlhf_jax.training.selection import summary_of_selection
from rlhf_jax.training.workdir import done_before, finish, open_workdir

QUANTILES = (0, 5, 10, 25, 50, 75, 90, 100)  # of the variances, in per cent
NUM_BINS = 20  # bins of the histogram of variances


def run(config, workdir: str) -> None:
    """Select prompts for `config.init_from` by the scores of `config.rewards`."""
    check_options(config)
    workdir = open_workdir(workdir, config, free=FREE)
    if done_before(workdir):
        return

    # Data
    data = sources.open_data(config.data, workdir)
    read = sources.Reader(config.data, workdir)
    tokenizer = sources.open_tokenizer(config.data, data, config.init_from, workdir)
    model_checks.check_models(
        tokenizer,
        sources.tokenizer_fingerprint,
        policies=[config.init_from],
        reward_models=[config.reward_model],
    )
    records = read(config.prompts or data / "prompts.jsonl", Prompt)
    prompts, prompt_ids = encode_prompts(records, tokenizer, config.max_prompt_tokens)
    rewards = Rewards(config, workdir)
    rewards.check(prompts)
    agree(
        workdir,
        read.fingerprints | rewards.files,
        tokenizer=tokenizer.fingerprint,
        models=[config.init_from, config.reward_model],
    )

    # Selection
    report = {"too long": len(records) - len(prompts), "responses": 0, "tokens": 0}
    size = config.random_size
    if config.random_size_of:
        size = kept_by(config.random_size_of)
    if not size:
        responses, scored = sample(config, prompts, prompt_ids, tokenizer, rewards)
        write_rollouts(workdir / "rollouts.jsonl", prompts, responses, scored, rewards)
        keep = varies(scored.scores, config.epsilon)
        if not keep.any():
            raise ValueError(
                f"Every prompt's scores have a variance below {config.epsilon=}; the "
                f"largest is {scored.scores.var(axis=1).max():.3g}."
            )
        size = int(keep.sum())
        report |= variance_report(prompts, scored.scores, config.epsilon)
        report |= scored.faulty()
        report["responses"] = scored.scores.size
        report["tokens"] = sum(len(x.tokens) for group in responses for x in group)
    if config.choose == "random":
        keep = random_subset(len(prompts), size, config.seed)
    write_records(
        workdir / "prompts.jsonl",
        [prompt for prompt, kept in zip(prompts, keep, strict=True) if kept],
    )
    report |= selection_report(prompts, keep)
    logging.info("Kept %d of %d prompts.", report["kept"], len(prompts))
    finish(workdir, report)


def sample(
    config,
    prompts: Sequence[Prompt],
    prompt_ids: Sequence[list[int]],
    tokenizer: Tokenizer,
    rewards: Rewards,
) -> tuple[list[list[Response]], Scored]:
    """Answer every prompt, and score the answers: both [N, K]."""
    sample_key, policy_key, head_key = jax.random.split(jax.random.key(config.seed), 3)
    policy = weights.load_policy(
        config.init_from,
        model=config.model,
        num_tokens=tokenizer.vocab_size,
        key=policy_key,
        **weights.computation(config),
    )
    reward_model = None
    if rewards.uses_model:
        reward_model = weights.load_score_model(
            config.reward_model,
            backbone=policy,
            num_tokens=tokenizer.vocab_size,
            key=head_key,
        )
    responses = sample_candidates(
        policy,
        prompt_ids,
        tokenizer,
        sample_key,
        count=config.samples_per_prompt,
        batch_size=config.batch_size,
        max_new_tokens=config.max_response_tokens,
        temperature=config.temperature,
    )
    scored = candidate_rewards(
        rewards,
        reward_model,
        prompts,
        prompt_ids,
        responses,
        pad_id=tokenizer.pad_id,
        batch_size=max(config.batch_size // config.samples_per_prompt, 1),
        end_penalty=config.missing_end_penalty,
    )
    return responses, scored


def varies(scores: np.ndarray, epsilon: float) -> np.ndarray:
    """Return True for each prompt whose scores, float [N, K], have a variance of
    `epsilon` or more: the sum of squares divided by K, not by K - 1."""
    return scores.var(axis=1) >= epsilon


def agreement_of_halves(scores: np.ndarray, epsilon: float) -> float | None:
    """Return how well selections by the first and by the second half of the responses
    agree: Cohen's kappa, 1 where they are the same and 0 where they agree by chance.
    None for halves of less than two responses, or if both keep all prompts, or none.

    Args:
        scores: float [N, K].
    """
    half = scores.shape[1] // 2
    if half < 2:
        return None
    both = [varies(x, epsilon) for x in (scores[:, :half], scores[:, -half:])]
    if len(np.unique(both)) < 2:
        return None
    return float(cohen_kappa_score(*both))


def random_subset(count: int, size: int, seed: int) -> np.ndarray:
    """Return True for `size` of `count` prompts, drawn at random: bool [count].

    Raises:
        ValueError: there are too few prompts.
    """
    if size > count:
        raise ValueError(
            f"{size} prompts are to be kept at random, and {count} are within "
            "max_prompt_tokens: lower random_size, or give the prompts that the "
            "selection of random_size_of chose from."
        )
    order = np.random.default_rng(seed).permutation(count)
    return np.isin(np.arange(count), order[:size])


def kept_by(folder: str) -> int:
    """Return the number of prompts that a finished selection kept.

    Raises:
        ValueError: the folder holds none.
    """
    summary = summary_of_selection(folder)
    if summary is None:
        raise ValueError(
            f"config.random_size_of={folder!r} is not the workdir of a finished run of "
            "select_prompts: name one, or give the number as random_size."
        )
    return summary["kept"]


def write_rollouts(
    path: Path,
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[Response]],
    scored: Scored,
    rewards: Rewards,
) -> None:
    """Write one line per prompt: its variance, scores, rewards by name and
    responses."""
    with writing_whole(path) as file:
        for i, (prompt, group) in enumerate(zip(prompts, responses, strict=True)):
            record = {
                "id": prompt.id,
                "intent": prompt.intent,
                "variance": float(scored.scores[i].var()),
                "scores": scored.scores[i].tolist(),
                **rewards.of_rows(scored, i),
                "responses": [response.text for response in group],
                "ended": [response.ended for response in group],
            }
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def selection_report(prompts: Sequence[Prompt], keep: np.ndarray) -> dict:
    """Return the counts of kept and dropped prompts, overall and by intent."""
    intents = np.array([prompt.intent for prompt in prompts])
    return {
        "kept": int(keep.sum()),
        "dropped": int((~keep).sum()),
        # The share of the rollouts in one pass over all the prompts.
        "rollouts saved": float((~keep).mean()),
        "by intent": {
            str(intent): {
                "kept": int(keep[intents == intent].sum()),
                "dropped": int((~keep)[intents == intent].sum()),
            }
            for intent in sorted(set(intents))
        },
    }


def variance_report(
    prompts: Sequence[Prompt], scores: np.ndarray, epsilon: float
) -> dict:
    """Return the mean variance by intent, the quantiles and a histogram of the
    variances, and how well selections by half of the responses agree."""
    variances = scores.var(axis=1)
    counts, edges = np.histogram(variances, bins=NUM_BINS)
    intents = np.array([prompt.intent for prompt in prompts])
    return {
        "kappa of halves": agreement_of_halves(scores, epsilon),
        "variance by intent": {
            str(intent): float(variances[intents == intent].mean())
            for intent in sorted(set(intents))
        },
        "variance quantiles": {
            f"{q} %": float(np.percentile(variances, q)) for q in QUANTILES
        },
        "variance histogram": {"counts": counts.tolist(), "edges": edges.tolist()},
    }


def check_options(config) -> None:
    """Refuse invalid options before anything is read.

    Raises:
        ValueError: names the option and says what to set instead.
    """
    if config.samples_per_prompt < 2:
        raise ValueError(
            f"{config.samples_per_prompt=} must be 2 or more: one has no variance."
        )
    sizes = [x for x in (config.random_size, config.random_size_of) if x]
    if sizes and config.choose != "random":
        raise ValueError(
            f"{config.random_size=} and {config.random_size_of=} are those of "
            "choose='random': choose so, or leave both empty."
        )
    if len(sizes) == 2:
        raise ValueError(
            f"{config.random_size=} and {config.random_size_of=} both give a size: "
            "leave one empty."
        )
    check_rewards(config)
