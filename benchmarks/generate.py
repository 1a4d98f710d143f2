"""Tokens a second of sampling: prefill and decoding in one program.

python -m benchmarks.generate [--prompts=32] [--prompt=64] [--response=128] [--int8]

Prompts of 16 to 64 tokens, left-padded; 128 new tokens each from the whole
distribution, none of which ends a response; the preset "benchmark" (4 layers, width
256, vocabulary 8,192), random weights. JSON: new tokens a second, seconds, memory.
"""

import argparse
import functools
import itertools
import json

import jax
import numpy as np
from flax import nnx

from benchmarks.timing import measure
from rlhf_jax.data.batching import prompt_batch
from rlhf_jax.generation.generate import generate, growth
from rlhf_jax.generation.rollout import rollout
from rlhf_jax.generation.sampling import Sampling
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.presets import preset
from rlhf_jax.models.quantise import quantise
from rlhf_jax.parallel.flops import count_flops
from rlhf_jax.training.allocator import keep_freed_memory


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="benchmark")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--response", type=int, default=128)
    parser.add_argument("--top_k", type=int, default=0)
    parser.add_argument("--top_p", type=float, default=1.0)
    parser.add_argument("--int8", action="store_true", help="weights in 8 bits")
    parser.add_argument("--repeats", type=int, default=10)
    flags = parser.parse_args()
    keep_freed_memory()

    config = preset(flags.model)
    model = jax.jit(lambda: ChatGLM(config, rngs=nnx.Rngs(0)))()
    if flags.int8:
        model = jax.jit(quantise)(model)
    rng = np.random.default_rng(0)
    lengths = rng.integers(flags.prompt // 4, flags.prompt + 1, flags.prompts)
    prompts = [rng.integers(4, config.vocab_size, n).tolist() for n in lengths]
    batch = prompt_batch(
        prompts, np.arange(flags.prompts), pad_id=0, width=flags.prompt
    )
    sampling = Sampling(
        max_new_tokens=flags.response,
        temperature=1.0,
        top_k=flags.top_k,
        top_p=flags.top_p,
        min_new_tokens=flags.response,
        stop_ids=(0,),
        pad_id=0,
        num_tokens=config.vocab_size,
    )
    keys = map(jax.random.key, itertools.count())

    def operations():
        count = count_flops(
            functools.partial(generate, sampling=sampling),
            *(model, batch.prompts, batch.prompt_mask, next(keys)),
            loop_steps=flags.response // len(growth(flags.response)),
        )
        return {"generate": count}

    found = measure(
        {"generate": lambda: rollout(model, batch, next(keys), sampling)},
        repeats=flags.repeats,
        work=flags.prompts * flags.response,
        operations=operations,
    )
    print(json.dumps(vars(flags) | found))


if __name__ == "__main__":
    main()
