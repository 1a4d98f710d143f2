"""DPO's step with the reference cached and on the fly: pairs a second.

python -m benchmarks.dpo [--pairs=16] [--prompt=64] [--response=128] [--repeats=12]

The compiled step of stages/dpo.py on full-length pairs: loss, gradient, AdamW. The two
ways take turns, so that a busy moment of the machine meets both. Compilation is timed
apart. JSON: median, quartiles, and processor seconds a step, which others on the
machine disturb less.
"""

import argparse
import functools
import json
import os
import time

import jax
import numpy as np
import optax
from flax import nnx

from rlhf_jax.data.batching import preference_batch
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.presets import preset
from rlhf_jax.stages.dpo import Hyper, pair_logprobs, train_step
from rlhf_jax.training.allocator import keep_freed_memory
from rlhf_jax.training.optimizers import adamw
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
    rng = np.random.default_rng(0)
    lengths = (flags.prompt, flags.response, flags.response)
    pairs = [
        tuple(rng.integers(0, config.vocab_size, n).tolist() for n in lengths)
        for _ in range(flags.pairs)
    ]
    batch = preference_batch(pairs, pad_id=0, multiple=1)
    hyper = Hyper(
        num_tokens=config.vocab_size,
        chunk_size=0,
        loss="dpo",
        beta=0.1,
        label_smoothing=0.0,
        gamma=0.0,
        alpha=0.0,
        beta_sft=0.0,
    )
    optimizer = adamw(
        optax.constant_schedule(1e-6), b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1,
        clip_norm=1.0,
    )  # fmt: skip
    create = jax.jit(lambda: ChatGLM(config, rngs=nnx.Rngs(0)))
    reference = create()
    ref_logprobs = jax.jit(functools.partial(pair_logprobs, hyper=hyper))(
        reference, batch
    )
    step = functools.partial(
        train_step, optimizer=optimizer, microbatches=1, hyper=hyper
    )
    known = {"cached": (ref_logprobs, None), "on_the_fly": (None, reference)}

    found, states, compiled = vars(flags) | {"cores": os.cpu_count()}, {}, {}
    for name, (logprobs, model) in known.items():
        states[name] = jax.jit(TrainState.create, static_argnames="optimizer")(
            create(), optimizer
        )
        start = time.perf_counter()
        lowered = jax.jit(step, donate_argnums=0).lower(
            states[name], batch, logprobs, None, model
        )
        compiled[name] = lowered.compile()
        found[f"{name}_compile_seconds"] = round(time.perf_counter() - start, 1)
    wall, busy = ({name: [] for name in known} for _ in range(2))
    for _ in range(flags.repeats + 1):  # the first warms up
        for name, (logprobs, model) in known.items():
            start, start_busy = time.perf_counter(), time.process_time()
            states[name], metrics = compiled[name](
                states[name], batch, logprobs, None, model
            )
            jax.block_until_ready((states[name], metrics))
            wall[name].append(time.perf_counter() - start)
            busy[name].append(time.process_time() - start_busy)
    for name in known:
        rates = np.quantile(flags.pairs / np.array(wall[name][1:]), (0.25, 0.5, 0.75))
        found[f"{name}_pairs_per_second"] = round(rates[1], 2)
        found[f"{name}_quartiles"] = rates[[0, 2]].round(2).tolist()
        processor = np.median(busy[name][1:])
        found[f"{name}_processor_seconds"] = round(processor, 3)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
