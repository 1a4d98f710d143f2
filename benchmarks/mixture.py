"""Benchmark of a mixture of experts beside a dense model of equal active size: the SFT
step and sampling, in turns.

python -m benchmarks.mixture [--dense=tiny] [--mixture=tiny_moe] [--rows=16]
    [--length=192] [--prompts=32] [--prompt=64] [--response=128] [--repeats=5]

Random weights in float32; rows without padding, and responses of full length. JSON: for
each of both models tokens per second, processor seconds, and the share of the peak.
"""

import argparse
import functools
import itertools
import json

import jax
import numpy as np
from flax import nnx

from benchmarks.inputs import (
    LEARNING_RATE,
    plain_adamw,
    random_prompts,
    sampling_operations,
)
from benchmarks.timing import measure
from rlhf_jax.algorithms.sft import Hyper, train_step
from rlhf_jax.batches import SFTBatch
from rlhf_jax.data.batching import prompt_batch
from rlhf_jax.generation.rollout import rollout
from rlhf_jax.generation.sampling import Sampling
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.presets import preset
from rlhf_jax.planning.flops import count_flops
from rlhf_jax.training.allocator import keep_freed_memory
from rlhf_jax.training.state import TrainState


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dense", default="tiny")
    parser.add_argument("--mixture", default="tiny_moe")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=192)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--response", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    flags = parser.parse_args()
    keep_freed_memory()

    names = (flags.dense, flags.mixture)
    make = jax.jit(lambda config: ChatGLM(config, rngs=nnx.Rngs(0)), static_argnums=0)
    models = {name: make(preset(name)) for name in names}
    size = min(model.config.vocab_size for model in models.values())
    results = {
        "sft": updates(models, flags, size),
        "generate": responses(models, flags, size),
    }
    print(json.dumps(vars(flags) | results))


def updates(models: dict[str, ChatGLM], flags, vocab_size: int) -> dict:
    shape = (flags.rows, flags.length)
    tokens = np.random.default_rng(0).integers(0, vocab_size, shape).astype(np.int32)
    mask = np.ones(shape, bool)
    batch, optimizer = SFTBatch(tokens, mask, mask), plain_adamw()
    hyper = Hyper(num_tokens=vocab_size, chunk_size=0, microbatches=1)
    step = jax.jit(functools.partial(train_step, optimizer=optimizer, hyper=hyper))
    states = {
        name: jax.jit(functools.partial(TrainState.create, optimizer=optimizer))(model)
        for name, model in models.items()
    }
    return measure(
        {
            name: functools.partial(step, state, batch, LEARNING_RATE)
            for name, state in states.items()
        },
        repeats=flags.repeats,
        work=tokens.size,
        operations=lambda: {
            name: count_flops(step, state, batch, LEARNING_RATE)
            for name, state in states.items()
        },
    )


def responses(models: dict[str, ChatGLM], flags, vocab_size: int) -> dict:
    prompts = random_prompts(flags.prompts, longest=flags.prompt, vocab_size=vocab_size)
    batch = prompt_batch(
        prompts, np.arange(flags.prompts), pad_id=0, width=flags.prompt
    )
    sampling = Sampling(
        max_new_tokens=flags.response,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        min_new_tokens=flags.response,
        stop_ids=(0,),
        pad_id=0,
        num_tokens=vocab_size,
    )
    keys = map(jax.random.key, itertools.count())
    return measure(
        {
            name: functools.partial(
                lambda model: rollout(model, batch, next(keys), sampling), model
            )
            for name, model in models.items()
        },
        repeats=flags.repeats,
        work=flags.prompts * flags.response,
        operations=lambda: {
            name: sampling_operations(model, batch, next(keys), sampling)
            for name, model in models.items()
        },
    )


if __name__ == "__main__":
    main()
