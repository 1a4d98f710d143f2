"""Benchmark of a mixture of experts beside a dense model of equal active size: the SFT
step and sampling, in turns.

python -m benchmarks.mixture [--dense=tiny] [--mixture=tiny_moe] [--rows=16]
    [--length=192] [--prompts=32] [--prompt=64] [--response=128] [--repeats=5]

Random weights in float32; rows without padding, and responses of full length. JSON: for
each of both models tokens per second, processor seconds, and the share of the peak.
"""

import argparse
import functools
import json

import jax
import numpy as np
from flax import nnx

from benchmarks.generate import sampling_rates
from benchmarks.inputs import (
    LEARNING_RATE,
    full_length,
    plain_adamw,
    random_prompt_batch,
)
from benchmarks.timing import measure
from rlhf_jax.algorithms.sft import Hyper, train_step
from rlhf_jax.batches import SFTBatch
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
        "generate": sampling_rates(
            models,
            random_prompt_batch(flags.prompts, longest=flags.prompt, vocab_size=size),
            full_length(flags.response, vocab_size=size),
            repeats=flags.repeats,
        ),
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


if __name__ == "__main__":
    main()
