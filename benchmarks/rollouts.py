"""Benchmark of sampling responses of different lengths: by rows that take the next
response, and in whole batches, in which every row runs to the longest.

python -m benchmarks.rollouts [--prompts=128] [--samples=1] [--rows=64] [--response=128]
    [--mean=0.3] [--repeats=5]

Prompts have 16 to 64 tokens. The weights are random, and so many tokens end a response
that lengths are geometric with a mean of `mean` times the longest. Both ways use the
same random keys and so give the same responses, but for rounding. JSON: tokens of the
responses a second, slots (a step of a row each) a second, the largest caches in MiB.
"""

import argparse
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.inputs import random_prompts
from benchmarks.timing import measure
from benchmarks.whole_batch import generate
from rlhf_jax.data.batching import pad_left
from rlhf_jax.generation import rows as rows_
from rlhf_jax.generation.responses import respond
from rlhf_jax.generation.sampling import Sampling
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.presets import preset
from rlhf_jax.training.allocator import keep_freed_memory


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="benchmark")
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--response", type=int, default=128)
    parser.add_argument("--mean", type=float, default=0.3)
    parser.add_argument("--repeats", type=int, default=5)
    flags = parser.parse_args()
    keep_freed_memory()

    length = flags.prompt + flags.response
    config = preset(flags.model)
    config = dataclasses.replace(
        config, context_length=max(length, config.context_length)
    )
    model = jax.jit(lambda: ChatGLM(config, rngs=nnx.Rngs(0)))()
    prompts = random_prompts(
        flags.prompts, longest=flags.prompt, vocab_size=config.vocab_size
    )
    tokens, mask = pad_left(prompts, flags.prompt, 0)
    sampling, key = geometric(config.vocab_size, flags), jax.random.key(0)

    def by_turns():
        return respond(
            model, tokens, mask, key, sampling, samples=flags.samples, rows=flags.rows
        )

    def in_one_batch():
        rows, of_rows = (np.repeat(x, flags.samples, axis=0) for x in (tokens, mask))
        keys = rows_.row_keys(key, jnp.arange(len(rows)))
        return generate(model, rows, of_rows, keys, sampling)

    responses, used = counted(by_turns)
    whole = jax.device_get(in_one_batch())
    new_tokens, count = int(responses.lengths.sum()), len(responses.lengths)
    results = measure(
        {"by_turns": by_turns, "in_one_batch": in_one_batch},
        repeats=flags.repeats,
        work=new_tokens,
    )
    slots = flags.prompt + flags.response
    cache = model.init_cache(count, slots)
    both = {
        "by_turns": used,
        "in_one_batch": (count * int(whole.lengths.max()), mib(cache)),
    }
    for name, (row_steps, largest) in both.items():
        results[name]["slots_per_second"] = round(row_steps / results[name]["seconds"])
        results[name]["cache_mib"] = round(largest, 1)
    for clock in ("seconds", "processor_seconds"):
        ratio = results["in_one_batch"][clock] / results["by_turns"][clock]
        results[f"ratio_of_{clock}"] = round(ratio, 2)
    same = (responses.tokens == whole.tokens).all(axis=1).mean()
    shown = {"same_responses": same, "mean_length": new_tokens / count}
    print(json.dumps(vars(flags) | shown | results))


def geometric(vocab_size: int, flags) -> Sampling:
    """Return a way to sample that ends a response at each token with the same
    probability, such that the mean length is `flags.mean` of the longest."""
    return Sampling(
        max_new_tokens=flags.response,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        min_new_tokens=0,
        stop_ids=tuple(range(round(vocab_size / (flags.mean * flags.response)))),
        pad_id=0,
        num_tokens=vocab_size,
    )


def counted(call):
    """Return what `call` returns, and besides the number of rows times steps that it
    decoded, and the MiB of its largest caches."""
    decode_round, steps, sizes = rows_.decode_round, [], []

    def counting(model, rows, *args, **options):
        sizes.append(mib((rows.cache, rows.prompts)))
        steps.append(len(rows.live) * options["steps"])
        return decode_round(model, rows, *args, **options)

    rows_.decode_round = counting
    try:
        return call(), (sum(steps), max(sizes))
    finally:
        rows_.decode_round = decode_round


def mib(tree) -> float:
    return sum(x.nbytes for x in jax.tree.leaves(tree)) / 2**20


if __name__ == "__main__":
    main()
