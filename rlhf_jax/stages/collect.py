"""Collect comparisons: responses of a model, compared by annotators.

ChatGLM-RLHF (arXiv 2404.00934), sections 1 and 2:
1. A model answers every prompt `num_responses` times.
2. The testbed's annotators compare every pair of a prompt's answers.
3. Ties and cycles go; what people chose is balanced by length.
Leaves `comparisons.jsonl` and a part held out in `comparisons_test.jsonl`.
"""

import itertools

import jax
import numpy as np
from absl import logging

from rlhf_jax.data import sources
from rlhf_jax.data.chat import decode_response, encode_response
from rlhf_jax.data.encoding import encode_prompts
from rlhf_jax.data.filters import clean
from rlhf_jax.data.length_balance import length_balance
from rlhf_jax.data.records import Comparison, Prompt, read_records, write_records
from rlhf_jax.data.testbed.annotators import AnnotatorConfig, make_annotators
from rlhf_jax.data.testbed.comparisons import compare
from rlhf_jax.generation.rollout import respond
from rlhf_jax.generation.sampling import Sampling
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
    comparisons = ask_annotators(prompts, responses, tokenizer, config)
    report = {
        "prompts": len(prompts),
        "responses": len(flat),
        "compared": len(comparisons),
    }
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
    write_records(workdir / "comparisons.jsonl", kept)
    report["kept"] = len(kept)
    logging.info("Collected: %s", report)
    finish(workdir, report)


def ask_annotators(prompts, responses, tokenizer, config) -> list[Comparison]:
    """Every pair of each prompt's responses, compared by the testbed's annotators."""
    pairs = [
        (prompt, decode_response(a, tokenizer), decode_response(b, tokenizer))
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
