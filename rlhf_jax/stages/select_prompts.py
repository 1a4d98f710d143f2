"""Prompt selection: leave out prompts whose responses all score alike.

ChatGLM-RLHF (arXiv 2404.00934), section 3. The policy learns nothing from a prompt
whose responses all have the same score:
1. The policy answers every prompt `samples_per_prompt` times.
2. The answers are scored as in PPO: by the sum of their rewards (the reward model,
   functions, or both), less `missing_end_penalty` where an answer was cut at its limit.
3. Prompts whose scores have a variance below `epsilon` are dropped.
Writes `prompts.jsonl`, for config.prompts of PPO; `rollouts.jsonl`, with every prompt's
variance and its responses, their scores and whether they ended; and `summary.json`,
with the prompts kept by intent and the distribution of the variances.

The paper gives neither the number of samples nor epsilon.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from absl import logging

from rlhf_jax.data import sources
from rlhf_jax.data.encoding import encode_prompts
from rlhf_jax.data.records import Prompt, write_records
from rlhf_jax.evaluation.candidates import candidate_rewards, sample_candidates
from rlhf_jax.files import writing_whole
from rlhf_jax.rewards.rewards import FREE, Rewards
from rlhf_jax.rewards.rewards import check_options as check_rewards
from rlhf_jax.training import model_checks, weights
from rlhf_jax.training.inputs import agree
from rlhf_jax.training.workdir import done_before, finish, open_workdir

QUANTILES = (0, 5, 10, 25, 50, 75, 90, 100)  # of the variances, in per cent
NUM_BINS = 20  # bins of the histogram of variances


def run(config, workdir: str) -> None:
    """Select prompts for `config.init_from` by the scores of `config.rewards`."""
    check_options(config)
    workdir = open_workdir(workdir, config, free=FREE)
    if done_before(workdir):
        return
    sample_key, policy_key, head_key = jax.random.split(jax.random.key(config.seed), 3)

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

    # Models
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

    # Responses and scores
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
        batch_size=config.batch_size,
        end_penalty=config.missing_end_penalty,
    )
    scores = scored.scores
    by_name = [rewards.of_rows(scored, i) for i in range(len(prompts))]
    write_rollouts(workdir / "rollouts.jsonl", prompts, responses, scores, by_name)

    # Selection
    variances = scores.var(axis=1)  # sums of squares divided by K, not by K - 1
    keep = variances >= config.epsilon
    if not keep.any():
        raise ValueError(
            f"Every prompt's scores have a variance below {config.epsilon=}; the "
            f"largest is {variances.max():.3g}."
        )
    write_records(
        workdir / "prompts.jsonl",
        [prompt for prompt, kept in zip(prompts, keep, strict=True) if kept],
    )
    report = selection_report(prompts, variances, keep)
    report["too long"] = len(records) - len(prompts)
    report["responses"] = scores.size
    report |= scored.faulty()
    logging.info("Kept %d of %d prompts.", report["kept"], len(prompts))
    finish(workdir, report)


def write_rollouts(path: Path, prompts, responses, scores: np.ndarray, by_name) -> None:
    """Write one line per prompt: its variance, scores, rewards by name and
    responses."""
    columns = zip(prompts, responses, scores, by_name, strict=True)
    with writing_whole(path) as file:
        for prompt, group, row, rewards in columns:
            record = {
                "id": prompt.id,
                "intent": prompt.intent,
                "variance": float(row.var()),
                "scores": row.tolist(),
                **rewards,
                "responses": [response.text for response in group],
                "ended": [response.ended for response in group],
            }
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def selection_report(
    prompts: Sequence[Prompt], variances: np.ndarray, keep: np.ndarray
) -> dict:
    """Return the counts of kept and dropped prompts, overall and by intent, and the
    quantiles and a histogram of the variances."""
    counts, edges = np.histogram(variances, bins=NUM_BINS)
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
                "variance": float(variances[intents == intent].mean()),
            }
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
    check_rewards(config)
