"""Benchmark of packing, in real tokens per second: SFT steps, and a PPO update.

python -m benchmarks.packing [--batches=4] [--repeats=5]

SFT: the same dialogues of 16 to 256 tokens (lognormal, median 74; the second half of
each carries loss), in batches of 16 sorted by length and padded to multiples of 64, and
in mixed batches packed into rows. PPO: one epoch of 4 minibatches of 64 responses in
rows of 96 tokens, prompts of 20 to 32 tokens and responses of 20 on average
(geometric, at most 64). The preset "benchmark", random weights. JSON: for each way real
tokens per second and seconds, and the share of real tokens.
"""

import argparse
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.inputs import LEARNING_RATE, plain_adamw
from benchmarks.timing import measure
from configs import ppo as ppo_config
from rlhf_jax.algorithms import ppo, sft
from rlhf_jax.batches import Experience, Rollout
from rlhf_jax.data import packing
from rlhf_jax.data.batching import BatchOrder, sft_batch
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.heads import ScoreModel
from rlhf_jax.models.presets import preset
from rlhf_jax.ppo.options import Hyper
from rlhf_jax.ppo.state import PPOState
from rlhf_jax.training.allocator import keep_freed_memory
from rlhf_jax.training.state import TrainState

BATCH, RESPONSES, PROMPT, RESPONSE = 16, 64, 32, 64


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="benchmark")
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    flags = parser.parse_args()
    keep_freed_memory()
    results = {
        "sft": dialogues(preset(flags.model), flags.batches, flags.repeats),
        "ppo": updates(preset(flags.model), flags.repeats),
    }
    for part in results.values():
        ways = part["packed"]["per_second"], part["padded"]["per_second"]
        part["packed_over_padded"] = round(ways[0] / ways[1], 2)
    print(json.dumps(vars(flags) | results))


def dialogues(config, num_batches: int, repeats: int) -> dict:
    """Time SFT on one window of dialogues in both ways."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(4.3, 0.7, num_batches * BATCH), 16, 256).astype(int)
    examples = [
        (
            rng.integers(4, config.vocab_size, n).tolist(),
            [i >= n // 2 for i in range(n)],
        )
        for n in lengths
    ]
    room = packing.Room.of([packing.size(example) for example in examples], 64)
    make = {
        "padded": functools.partial(sft_batch, pad_id=0, multiple=64),
        "packed": functools.partial(
            packing.pack_dialogues, pad_id=0, room=room, unit=1, batch_size=BATCH
        ),
    }
    optimizer = plain_adamw()
    hyper = sft.Hyper(num_tokens=config.vocab_size, chunk_size=0, microbatches=1)
    step = jax.jit(
        functools.partial(sft.train_step, optimizer=optimizer, hyper=hyper),
        donate_argnums=0,
    )
    state = jax.jit(
        lambda: TrainState.create(ChatGLM(config, rngs=nnx.Rngs(0)), optimizer)
    )()
    batches = {}
    for way, make_batch in make.items():
        order = BatchOrder(
            len(examples),
            batch_size=BATCH,
            seed=0,
            lengths=lengths,
            mixed=way == "packed",
        )
        chosen = [order.indices(i) for i in range(num_batches)]
        batches[way] = [make_batch([examples[i] for i in index]) for index in chosen]

    def call(way):
        nonlocal state
        for batch in batches[way]:
            state, metrics = step(state, batch, LEARNING_RATE)
        return state, metrics

    calls = {way: functools.partial(call, way) for way in make}
    results = measure(calls, repeats=repeats, work=float(lengths.sum()))
    for way, made in batches.items():
        real = sum(batch.mask.sum() for batch in made)
        results[way]["real_tokens"] = round(
            float(real / sum(batch.mask.size for batch in made)), 3
        )
        results[way]["programs"] = len({batch.tokens.shape for batch in made})
    return results


def updates(config, repeats: int) -> dict:
    """Time the update of one PPO iteration in both ways."""
    rng = np.random.default_rng(0)

    def rows(lengths, width, *, left):
        places = np.arange(width)
        mask = places < lengths[:, None]
        mask = mask[:, ::-1] if left else mask
        ids = rng.integers(4, config.vocab_size, mask.shape)
        return np.where(mask, ids, 0).astype(np.int32), mask

    lengths = np.minimum(rng.geometric(1 / 20, RESPONSES), RESPONSE)
    responses, response_mask = rows(lengths, RESPONSE, left=False)
    prompts, prompt_mask = rows(rng.integers(20, 33, RESPONSES), PROMPT, left=True)
    number = rng.normal(size=responses.shape).astype(np.float32) * response_mask
    rolled = Rollout(
        prompts, prompt_mask, responses, response_mask, number, lengths < RESPONSE
    )
    settings = ppo_config.get_config("tiny")
    settings.update(beta_sft=0.0)
    hyper = Hyper.from_config(settings, config.vocab_size)
    experience = Experience(
        prompts=prompts,
        prompt_mask=prompt_mask,
        responses=responses,
        response_mask=response_mask,
        old_logprobs=number - 9.0,
        ref_logprobs=number - 9.0,
        advantages=number,
        weights=None,
        old_values=number,
        returns=number,
    )
    optimizer = plain_adamw()
    policy = ChatGLM(config, rngs=nnx.Rngs(0))
    state = PPOState.create(
        policy,
        ScoreModel(jax.tree.map(jnp.copy, policy), rngs=nnx.Rngs(1)),
        policy_optimizer=optimizer,
        value_optimizer=optimizer,
        hyper=hyper,
    )
    update = jax.jit(
        functools.partial(
            ppo.train_step,
            hyper=hyper,
            policy_optimizer=optimizer,
            value_optimizer=optimizer,
        ),
        donate_argnums=0,
    )
    rates = jnp.full(hyper.num_updates, LEARNING_RATE)
    key = jax.random.key(0)
    order = np.asarray(ppo.minibatches(key, RESPONSES, hyper=hyper))
    packed = packing.pack_minibatches(rolled, order, pad_id=0, unit=1)
    ways = {"padded": None, "packed": packed}

    def call(way):
        nonlocal state
        state, metrics = update(
            state, experience, None, key, (rates, rates), packed=ways[way]
        )
        return state, metrics

    calls = {way: functools.partial(call, way) for way in ways}
    real = prompt_mask.sum() + response_mask.sum()
    results = measure(calls, repeats=repeats, work=float(real))
    results["padded"]["real_tokens"] = round(float(real / RESPONSES / 96), 3)
    results["packed"]["real_tokens"] = round(float(packed.mask.mean()), 3)
    return results


if __name__ == "__main__":
    main()
