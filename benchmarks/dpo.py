"""Benchmark of DPO's step, in pairs per second: reference cached and on the fly.

python -m benchmarks.dpo [--pairs=16] [--prompt=64] [--response=128] [--repeats=12]

The compiled step of algorithms/dpo.py on full-length pairs: loss, gradient, AdamW.
"""

import argparse
import functools
import json

import jax
from flax import nnx

from benchmarks.inputs import LEARNING_RATE, plain_adamw, random_pairs
from benchmarks.timing import measure
from configs import dpo as dpo_config
from rlhf_jax.algorithms.dpo import Hyper, pair_logprobs, train_step
from rlhf_jax.data.batching import preference_batch
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.presets import preset
from rlhf_jax.planning.flops import count_flops
from rlhf_jax.training.allocator import keep_freed_memory
from rlhf_jax.training.state import TrainState


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="benchmark")
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--response", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=12)
    flags = parser.parse_args()
    keep_freed_memory()

    config = preset(flags.model)
    pairs = random_pairs(
        flags.pairs,
        prompt=flags.prompt,
        response=flags.response,
        vocab_size=config.vocab_size,
    )
    batch = preference_batch(pairs, pad_id=0, multiple=1)
    settings = dpo_config.get_config("tiny")
    settings.update(beta_sft=0.0)
    hyper = Hyper.from_config(settings, config.vocab_size)
    optimizer = plain_adamw()
    create = jax.jit(lambda: ChatGLM(config, rngs=nnx.Rngs(0)))
    reference = create()
    ref_logprobs = jax.jit(functools.partial(pair_logprobs, hyper=hyper))(
        reference, batch
    )
    step = jax.jit(
        functools.partial(train_step, optimizer=optimizer, hyper=hyper),
        donate_argnums=0,
    )
    references = {"cached": (ref_logprobs, None), "on_the_fly": (None, reference)}
    states = {name: TrainState.create(create(), optimizer) for name in references}

    def inputs(name):
        logprobs, model = references[name]
        return states[name], batch, logprobs, None, model, LEARNING_RATE

    def call(name):
        states[name], metrics = step(*inputs(name))
        return states[name], metrics

    results = measure(
        {name: functools.partial(call, name) for name in references},
        repeats=flags.repeats,
        work=flags.pairs,
        operations=lambda: {
            name: count_flops(step, *inputs(name)) for name in references
        },
    )
    print(json.dumps(vars(flags) | results))


if __name__ == "__main__":
    main()
