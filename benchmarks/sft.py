"""Benchmark of the SFT step, in tokens per second: loss, gradient, clipping, AdamW.

python -m benchmarks.sft [--rows=16] [--length=192] [--repeats=10]

The compiled step of algorithms/sft.py on rows without padding; the preset "benchmark"
(4 layers, width 256, vocabulary 8,192), random weights. JSON: tokens per second,
seconds, memory.
"""

import argparse
import functools
import json

import jax
import numpy as np
from flax import nnx

from benchmarks.inputs import LEARNING_RATE, plain_adamw
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
    parser.add_argument("--model", default="benchmark")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=192)
    parser.add_argument("--chunk_size", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=10)
    flags = parser.parse_args()
    keep_freed_memory()

    config = preset(flags.model)
    shape = (flags.rows, flags.length)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, shape)
    mask = np.ones(shape, bool)
    batch = SFTBatch(tokens.astype(np.int32), mask, mask)
    optimizer = plain_adamw()
    step = jax.jit(
        functools.partial(
            train_step,
            optimizer=optimizer,
            hyper=Hyper(
                num_tokens=config.vocab_size,
                chunk_size=flags.chunk_size,
                microbatches=1,
            ),
        ),
        donate_argnums=0,
    )
    state = jax.jit(
        lambda: TrainState.create(ChatGLM(config, rngs=nnx.Rngs(0)), optimizer)
    )()

    def call():
        nonlocal state
        state, metrics = step(state, batch, LEARNING_RATE)
        return state, metrics

    results = measure(
        {"step": call},
        repeats=flags.repeats,
        work=tokens.size,
        operations=lambda: {"step": count_flops(step, state, batch, LEARNING_RATE)},
    )
    print(json.dumps(vars(flags) | results))


if __name__ == "__main__":
    main()
