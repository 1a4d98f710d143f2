"""Collect comparisons: responses of a model, compared by annotators or a reward model.

1. A model answers every prompt `num_responses` times.
2. The answers are compared: by the testbed's annotators, every pair of a prompt
   (ChatGLM-RLHF, arXiv 2404.00934, section 1); or by a reward model, the best of a
   prompt against its worst (section 4).
3. Ties and cycles go; what people chose is balanced by length (sections 1 and 2).
Leaves `comparisons.jsonl` and, for annotators, a part held out in
`comparisons_test.jsonl`.
"""

import itertools

import jax
import numpy as np
from absl import logging

from rlhf_jax.data import sources
from rlhf_jax.data.batching import pad_left, pad_right, round_up
from rlhf_jax.data.chat import encode_response
from rlhf_jax.data.encoding import encode_prompts
from rlhf_jax.data.filters import clean
from rlhf_jax.data.length_balance import length_balance
from rlhf_jax.data.records import Comparison, Prompt, read_records, write_records
from rlhf_jax.data.testbed.annotators import AnnotatorConfig, make_annotators
from rlhf_jax.data.testbed.comparisons import compare
from rlhf_jax.generation.rollout import respond
from rlhf_jax.generation.sampling import Sampling
from rlhf_jax.generation.scoring import response_scores
from rlhf_jax.training import weights
from rlhf_jax.training.workdir import finish, is_finished, open_workdir


def run(config, workdir: str) -> None:
    """Collect comparisons of responses of `config.init_from` into `workdir`."""
    workdir = open_workdir(workdir, config)
    if is_finished(workdir):
        return
    sample_key, init_key = jax.random.split(jax.random.key(config.seed))

    # Data
    data = sources.open_data(config.data, workdir)
    tokenizer = sources.open_tokenizer(config.data, data, config.init_from, workdir)
    prompts, prompt_ids = encode_prompts(
        read_records(config.prompts or data / "comparison_prompts.jsonl", Prompt),
        tokenizer,
        config.max_prompt_tokens,
    )

    # Responses
    policy = weights.load_policy(
        config.init_from,
        model=config.model,
        num_tokens=tokenizer.vocab_size,
        key=init_key,
        dtype=config.dtype,
        param_dtype=config.param_dtype,
    )
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

    # Comparison
    report = {"prompts": len(prompts), "responses": len(flat)}
    if config.annotator == "testbed":
        comparisons = ask_annotators(prompts, responses, tokenizer, config)
        report["compared"] = len(comparisons)
        comparisons, dropped = clean(comparisons)
        report |= {f"dropped: {reason}": n for reason, n in dropped.items()}
        held_out = {p.id for p in prompts[: round(config.test_share * len(prompts))]}
        test = [c for c in comparisons if c.prompt.id in held_out]
        kept = [c for c in comparisons if c.prompt.id not in held_out]
        if config.length_bucket:
            before = len(kept)
            kept = balanced(kept, tokenizer, config)
            report["dropped: length balance"] = before - len(kept)
        write_records(workdir / "comparisons_test.jsonl", test)
        report["held out"] = len(test)
    elif config.annotator == "reward_model":
        reward_model = weights.load_score_model(
            config.reward_model,
            backbone=policy,
            num_tokens=tokenizer.vocab_size,
            key=init_key,
        )
        kept = label(prompts, prompt_ids, responses, reward_model, tokenizer, config)
        report["dropped: identical or below the margin"] = len(prompts) - len(kept)
    else:
        raise ValueError(
            f"{config.annotator=} must be 'testbed' or 'reward_model'; for people, see "
            "launch/collect.py."
        )
    write_records(workdir / "comparisons.jsonl", kept)
    report["kept"] = len(kept)
    logging.info("Collected: %s", report)
    finish(workdir, report)


def ask_annotators(prompts, responses, tokenizer, config) -> list[Comparison]:
    """Every pair of each prompt's responses, compared by the testbed's annotators."""
    pairs = [
        (prompt, tokenizer.decode(a), tokenizer.decode(b))
        for prompt, several in zip(prompts, responses, strict=True)
        for a, b in itertools.combinations(several, 2)
    ]
    annotators = make_annotators(AnnotatorConfig(**config.data.annotators))
    return compare(pairs, annotators, seed=config.seed, stream="collect")


def balanced(comparisons, tokenizer, config) -> list[Comparison]:
    """The comparisons that length balancing keeps."""
    lengths = np.array(
        [
            [len(encode_response(text, tokenizer)) for text in (c.chosen, c.rejected)]
            for c in comparisons
        ]
    )
    keep = length_balance(
        lengths[:, 0], lengths[:, 1], width=config.length_bucket, seed=config.seed
    ).keep
    return [c for c, kept in zip(comparisons, keep, strict=True) if kept]


def label(
    prompts, prompt_ids, responses, reward_model, tokenizer, config
) -> list[Comparison]:
    """The best against the worst response to each prompt by the reward model's score,
    where the two differ by more than `config.min_margin`."""
    scores = score(prompt_ids, responses, reward_model, tokenizer.pad_id, config)
    comparisons = []
    for prompt, several, found in zip(prompts, responses, scores, strict=True):
        best, worst = int(found.argmax()), int(found.argmin())
        texts = tokenizer.decode(several[best]), tokenizer.decode(several[worst])
        if found[best] - found[worst] <= config.min_margin or texts[0] == texts[1]:
            continue
        info = {"scores": [float(found[best]), float(found[worst])]}
        comparisons.append(Comparison(prompt, *texts, "a", "reward_model", info=info))
    if not comparisons:
        raise ValueError(
            f"No prompt has two responses whose scores differ by more than "
            f"{config.min_margin=}."
        )
    return comparisons


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
