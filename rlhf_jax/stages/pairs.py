"""Pairs of a policy's responses, labelled by a reward model: what DPO learns from.

ChatGLM-RLHF (arXiv 2404.00934), section 4:
1. The policy answers every prompt `num_responses` times.
2. The reward model scores the answers.
3. The best answer to each prompt is chosen, the worst rejected.
Leaves `comparisons.jsonl`.
"""

import jax
import numpy as np
from absl import logging

from rlhf_jax.data import sources
from rlhf_jax.data.batching import pad_left, pad_right, round_up
from rlhf_jax.data.chat import decode_response
from rlhf_jax.data.encoding import encode_prompts
from rlhf_jax.data.records import Comparison, Prompt, read_records, write_records
from rlhf_jax.generation.rollout import respond
from rlhf_jax.generation.sampling import Sampling
from rlhf_jax.generation.scoring import response_scores
from rlhf_jax.training import weights
from rlhf_jax.training.workdir import finish, is_finished, open_workdir


def run(config, workdir: str) -> None:
    """Label responses of `config.init_from` by `config.reward_model`."""
    workdir = open_workdir(workdir, config)
    if is_finished(workdir):
        return
    sample_key, init_key = jax.random.split(jax.random.key(config.seed))

    # Data
    data = sources.open_data(config.data, workdir)
    tokenizer = sources.open_tokenizer(config.data, data, config.init_from, workdir)
    prompts, prompt_ids = encode_prompts(
        read_records(config.prompts or data / "prompts.jsonl", Prompt),
        tokenizer,
        config.max_prompt_tokens,
    )

    # Models
    policy = weights.load_policy(
        config.init_from,
        model=config.model,
        num_tokens=tokenizer.vocab_size,
        key=init_key,
        dtype=config.dtype,
        param_dtype=config.param_dtype,
    )
    reward_model = weights.load_score_model(
        config.reward_model,
        backbone=policy,
        num_tokens=tokenizer.vocab_size,
        key=init_key,
    )

    # Responses
    sampling = Sampling(
        max_new_tokens=config.max_response_tokens,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        min_new_tokens=0,
        stop_ids=tokenizer.stop_ids,
        pad_id=tokenizer.pad_id,
        num_tokens=tokenizer.vocab_size,
    )
    repeated = [ids for ids in prompt_ids for _ in range(config.num_responses)]
    flat = respond(policy, repeated, sample_key, sampling, batch_size=config.batch_size)
    responses = [
        flat[i : i + config.num_responses]
        for i in range(0, len(flat), config.num_responses)
    ]

    # Pairs
    scores = score(prompt_ids, responses, reward_model, tokenizer.pad_id, config)
    kept = []
    for prompt, several, found in zip(prompts, responses, scores, strict=True):
        best, worst = int(found.argmax()), int(found.argmin())
        texts = [decode_response(several[i], tokenizer) for i in (best, worst)]
        if found[best] - found[worst] <= config.min_margin or texts[0] == texts[1]:
            continue
        info = {"scores": [float(found[best]), float(found[worst])]}
        kept.append(Comparison(prompt, *texts, "a", "reward_model", info=info))
    if not kept:
        raise ValueError(
            f"No prompt has two responses whose scores differ by more than "
            f"{config.min_margin=}."
        )
    write_records(workdir / "comparisons.jsonl", kept)
    report = {
        "prompts": len(prompts),
        "responses": len(flat),
        "dropped: identical or below the margin": len(prompts) - len(kept),
        "kept": len(kept),
    }
    logging.info("Pairs: %s", report)
    finish(workdir, report)


def score(prompt_ids, responses, reward_model, pad_id: int, config) -> np.ndarray:
    """Scores of K responses to each prompt: float32 [prompts, K]."""
    width = round_up(max(map(len, prompt_ids)), 8)
    step = jax.jit(response_scores)
    found = []
    for i in range(0, len(prompt_ids), config.batch_size):
        index = np.arange(i, i + config.batch_size) % len(prompt_ids)
        prompts, prompt_mask = pad_left([prompt_ids[j] for j in index], width, pad_id)
        flat = [response for j in index for response in responses[j]]
        tokens, mask = pad_right(flat, config.max_response_tokens, pad_id)
        shape = (len(index), config.num_responses, -1)
        tokens, mask = tokens.reshape(shape), mask.reshape(shape)
        found.append(np.asarray(step(reward_model, prompts, prompt_mask, tokens, mask)))
    return np.concatenate(found)[: len(prompt_ids)]
