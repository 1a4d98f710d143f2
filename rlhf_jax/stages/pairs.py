"""Pairs of a policy's responses, labelled by their rewards, for DPO.

ChatGLM-RLHF (arXiv 2404.00934), section 4:
1. The policy answers every prompt `num_responses` times.
2. The answers are scored as in PPO: by the sum of their rewards (the reward model,
   functions, or both), less `missing_end_penalty` where an answer was cut at its limit.
3. A rule makes pairs of the answers: the best against the worst, or another rule of
   data/cleaning/pair_rules.py. Pairs that teach nothing are left out and counted.
Writes `comparisons.jsonl`, each line with its origin.
"""

import json

import jax
import numpy as np
from absl import logging

from rlhf_jax.data import sources
from rlhf_jax.data.cleaning import pair_rules
from rlhf_jax.data.encoding import encode_prompts
from rlhf_jax.data.records import Comparison, Prompt, fields_of, write_records
from rlhf_jax.evaluation.candidates import candidate_rewards, sample_candidates
from rlhf_jax.rewards.rewards import FREE, Rewards
from rlhf_jax.rewards.rewards import check_options as check_rewards
from rlhf_jax.terminal import listed
from rlhf_jax.training import model_checks, weights
from rlhf_jax.training.inputs import agree
from rlhf_jax.training.workdir import done_before, finish, open_workdir


def run(config, workdir: str) -> None:
    """Label responses of `config.init_from` by `config.rewards`."""
    check_options(config)
    workdir = open_workdir(workdir, config, free=FREE)
    if done_before(workdir):
        return
    sample_key, init_key = jax.random.split(jax.random.key(config.seed))

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
    prompts, prompt_ids = encode_prompts(
        records[: config.max_prompts or None],
        tokenizer,
        config.max_prompt_tokens,
    )
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
        key=init_key,
        **weights.computation(config),
    )
    reward_model = None
    if rewards.uses_model:
        reward_model = weights.load_score_model(
            config.reward_model,
            backbone=policy,
            num_tokens=tokenizer.vocab_size,
            key=init_key,
        )

    # Responses and scores
    responses = sample_candidates(
        policy,
        prompt_ids,
        tokenizer,
        sample_key,
        count=config.num_responses,
        batch_size=config.batch_size,
        max_new_tokens=config.max_response_tokens,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
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

    # Pairs
    made = make_pairs(scores, config)
    kept, dropped = pair_rules.usable_pairs(
        made,
        scores,
        [json.dumps(prompt.messages) for prompt in prompts],
        [[response.text for response in group] for group in responses],
        min_margin=config.min_margin,
    )
    report = {
        "prompts": len(prompts),
        "responses": len(prompts) * config.num_responses,
        "cut at the limit": sum(not r.ended for group in responses for r in group),
        "pairs": len(made),
    }
    report |= scored.faulty()
    report |= {f"dropped: {reason}": n for reason, n in dropped.items()}
    report["kept"] = len(kept)
    logging.info("Pairs: %s.", listed(report))
    if not len(kept):
        raise ValueError(
            f"No pair is left: {listed(report)}. Is {config.min_margin=} too high?"
        )

    # Comparisons
    source = {
        "rule": config.rule,
        "policy": weights.fingerprint(config.init_from),
        **labelled_by(config, rewards),
        "missing_end_penalty": config.missing_end_penalty,
        "sampling": {
            "num_responses": config.num_responses,
            "max_response_tokens": config.max_response_tokens,
            "temperature": config.temperature,
            "top_k": config.top_k,
            "top_p": config.top_p,
            "seed": config.seed,
        },
    }
    if config.rule == "ranks":
        source["ranks"] = [config.chosen_rank, config.rejected_rank]
    comparisons = [
        Comparison(
            prompt=prompts[prompt],
            preference="a",
            annotator="rewards" if rewards.has_functions else "reward_model",
            info={
                "scores": scores[prompt, [chosen, rejected]].tolist(),
                **rewards.of_rows(scored, (prompt, [chosen, rejected])),
                **source,
            },
            **fields_of(responses[prompt][chosen], responses[prompt][rejected]),
        )
        for prompt, chosen, rejected in kept
    ]
    write_records(workdir / "comparisons.jsonl", comparisons)
    finish(workdir, report)


def make_pairs(scores: np.ndarray, config) -> np.ndarray:
    """Return pairs (prompt, chosen, rejected) by the config's rule: int [N, 3]."""
    return pair_rules.make_pairs(
        scores,
        config.rule,
        chosen_rank=config.chosen_rank,
        rejected_rank=config.rejected_rank,
        seed=config.seed,
    )


def labelled_by(config, rewards: Rewards) -> dict:
    """Return the origin of the labels: the reward model, and the functions if any."""
    origin = {}
    if rewards.has_functions:
        origin = {"labelled_by": config.rewards, "files": rewards.files}
    if rewards.uses_model:
        origin["reward_model"] = weights.fingerprint(config.reward_model)
    return origin


def check_options(config) -> None:
    """Refuse options that cannot make pairs, before anything is sampled.

    Raises:
        ValueError: names the option and its allowed values.
    """
    check_rewards(config, needs_model=True)
    if config.num_responses < 2:
        raise ValueError(f"{config.num_responses=} must be at least 2 to make a pair.")
    if config.rule != "ranks" and (config.chosen_rank, config.rejected_rank) != (0, -1):
        raise ValueError(f"{config.rule=} reads no ranks: leave them at 0 and -1.")
    make_pairs(np.zeros((1, config.num_responses)), config)
