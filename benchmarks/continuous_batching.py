"""Benchmark of answering many prompts: continuous batching against whole batches.

python -m benchmarks.continuous_batching [--prompts=256] [--batch_size=32] [--mean=32]
    [--repeats=5]

Prompts have 16 to 64 tokens, responses at most 128. The weights are random and one
token in `mean` ends a response, so lengths are nearly geometric. Both ways use the same
random keys and so give the same responses. JSON: new tokens per second, seconds,
memory.
"""

import argparse
import functools
import json

import jax
import numpy as np
from flax import nnx

from benchmarks.inputs import random_prompts
from benchmarks.timing import measure
from benchmarks.whole_batch import generate
from rlhf_jax.data.batching import prompt_batch
from rlhf_jax.generation.responses import sample_responses
from rlhf_jax.generation.rows import row_keys
from rlhf_jax.generation.sampling import Sampling
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.presets import preset
from rlhf_jax.training.allocator import keep_freed_memory


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="benchmark")
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--response", type=int, default=128)
    parser.add_argument("--mean", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    flags = parser.parse_args()
    keep_freed_memory()

    config = preset(flags.model)
    model = jax.jit(lambda: ChatGLM(config, rngs=nnx.Rngs(0)))()
    prompts = random_prompts(
        flags.prompts, longest=flags.prompt, vocab_size=config.vocab_size
    )
    sampling = Sampling(
        max_new_tokens=flags.response,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        min_new_tokens=0,
        stop_ids=tuple(range(config.vocab_size // flags.mean)),
        pad_id=0,
        num_tokens=config.vocab_size,
    )
    arguments = model, prompts, jax.random.key(0), sampling
    ways = {
        name: functools.partial(answer, *arguments, batch_size=flags.batch_size)
        for name, answer in (("by_turns", by_turns), ("by_batches", in_batches))
    }
    responses, others = (answer() for answer in ways.values())
    same = np.mean([a == b for a, b in zip(responses, others, strict=True)])
    new_tokens = sum(map(len, responses))
    results = measure(ways, repeats=flags.repeats, work=new_tokens)
    speedup = results["by_batches"]["seconds"] / results["by_turns"]["seconds"]
    results |= {"speedup": round(speedup, 3), "mean_length": new_tokens / len(prompts)}
    print(json.dumps(vars(flags) | {"same_responses": same} | results))


def by_turns(model, prompts, key, sampling, *, batch_size):
    """Sample one response to each prompt; return token ids."""
    groups = sample_responses(model, prompts, key, sampling, samples=1, rows=batch_size)
    return [ids for (ids,) in groups]


def in_batches(model, prompts, key, sampling, *, batch_size):
    """Sample one batch after the other, each to its longest; return token ids."""
    width, responses = max(map(len, prompts)), []
    for start in range(0, len(prompts), batch_size):
        rows = prompts[start : start + batch_size]
        index = np.arange(start, start + len(rows))
        batch = prompt_batch(rows, index, pad_id=sampling.pad_id, width=width)
        keys = row_keys(key, index)
        sampled = jax.device_get(
            generate(model, batch.prompts, batch.prompt_mask, keys, sampling)
        )
        rows = zip(sampled.tokens, sampled.mask, strict=True)
        responses += [tokens[mask].tolist() for tokens, mask in rows]
    return responses


if __name__ == "__main__":
    main()
