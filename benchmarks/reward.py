"""Benchmark of the reward model's step: a pair's prompt computed once, and twice.

python -m benchmarks.reward [--pairs=16] [--prompt=64] [--response=64] [--repeats=15]

If prompts are as long as responses, two separate dialogues have 4 lengths of tokens,
and one row with a shared prompt has 3. A step whose time is proportional to its tokens
can thus be at most 1.33 times as fast.
"""

import argparse
import functools
import json

import jax
from flax import nnx

from benchmarks.inputs import LEARNING_RATE, plain_adamw, random_pairs
from benchmarks.timing import measure
from rlhf_jax.algorithms.reward import Hyper, train_step
from rlhf_jax.batches import SFTBatch
from rlhf_jax.data.batching import packed_pairs, pad_right
from rlhf_jax.losses.reward import ranking_loss
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.heads import ScoreModel, last_real_token
from rlhf_jax.models.presets import preset
from rlhf_jax.planning.flops import count_flops
from rlhf_jax.training.allocator import keep_freed_memory
from rlhf_jax.training.state import TrainState, apply_gradients

HYPER = Hyper(
    margin=0.0, label_smoothing=0.0, score_regularisation=0.01, microbatches=1
)


def plain_step(state, batch, learning_rate, *, optimizer):
    """Lay out chosen and rejected as two rows, each with its prompt: rows [2 B, T]."""

    def loss_fn(model):
        values = model(batch.tokens, batch.mask)
        scores = last_real_token(values, batch.mask).reshape(-1, 2)
        out = ranking_loss(
            chosen_scores=scores[:, 0],
            rejected_scores=scores[:, 1],
            margin=HYPER.margin,
            label_smoothing=HYPER.label_smoothing,
            score_regularisation=HYPER.score_regularisation,
        )
        return out.loss.mean()

    loss, gradients = jax.value_and_grad(loss_fn)(state.model)
    state, _ = apply_gradients(state, loss, gradients, optimizer.at(learning_rate))
    return state, {"loss/reward": loss}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--response", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=15)
    flags = parser.parse_args()
    keep_freed_memory()

    config = preset(flags.model)
    pairs = random_pairs(
        flags.pairs,
        prompt=flags.prompt,
        response=flags.response,
        vocab_size=config.vocab_size,
    )
    packed = packed_pairs(pairs, pad_id=0, multiple=1, batch_size=flags.pairs)
    rows = [prompt + response for prompt, *both in pairs for response in both]
    tokens, mask = pad_right(rows, flags.prompt + flags.response, pad_id=0)
    plain = SFTBatch(tokens, mask, mask)

    optimizer = plain_adamw()

    @jax.jit
    def create():
        model = ScoreModel(ChatGLM(config, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1))
        return TrainState.create(model, optimizer)

    shared_step = functools.partial(train_step, hyper=HYPER)
    batches = {"shared": packed, "plain": plain}
    steps = {
        name: jax.jit(functools.partial(step, optimizer=optimizer), donate_argnums=0)
        for name, step in {"shared": shared_step, "plain": plain_step}.items()
    }
    states = {name: create() for name in steps}

    def call(name):
        states[name], metrics = steps[name](states[name], batches[name], LEARNING_RATE)
        return states[name], metrics

    calls = {name: functools.partial(call, name) for name in steps}
    results = measure(
        calls,
        repeats=flags.repeats,
        work=flags.pairs,
        operations=lambda: {
            name: count_flops(steps[name], states[name], batches[name], LEARNING_RATE)
            for name in steps
        },
    )
    speedup = results["plain"]["seconds"] / results["shared"]["seconds"]
    print(json.dumps(vars(flags) | results | {"speedup": round(speedup, 3)}))


if __name__ == "__main__":
    main()
