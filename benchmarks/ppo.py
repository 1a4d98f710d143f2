"""Benchmark of one PPO iteration, in seconds: generate, score, update.

python -m benchmarks.ppo [--prompts=32] [--response=128] [--epochs=4] [--repeats=10]
    [--samples=1] [--mean=0] [--rows=0] [--before]

32 prompts of 16 to 64 tokens, 128 new tokens each (no response ends early), 4 epochs
of one minibatch; policy, value, reference and reward model of the preset "benchmark"
(4 layers, width 256, vocabulary 8,192; 7M parameters), random weights, no SFT term.
With `samples`, GRPO; with `mean`, lengths are geometric, with a mean of this part of
the longest. With `before`, the same work also without refilled rows, shared prompts and
packing, in turns: every row is sampled to the longest (whole_batch.py), and every
response has a row of its own. The learning rate is 0 and the key
is the same, so that all turns have the same lengths.
JSON: the seconds of every part and of the whole iteration, and the ratios.
"""

import argparse
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.inputs import full_length, random_prompt_batch, sampling_operations
from benchmarks.rollouts import geometric
from benchmarks.timing import measure
from benchmarks.whole_batch import generate
from configs import ppo as ppo_config
from rlhf_jax.algorithms import ppo
from rlhf_jax.data import packing
from rlhf_jax.generation.responses import Responses
from rlhf_jax.generation.rollout import as_rollout, repeat_prompts, rollout
from rlhf_jax.generation.rows import row_keys
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.heads import ScoreModel
from rlhf_jax.models.presets import preset
from rlhf_jax.planning.flops import count_flops
from rlhf_jax.ppo.experience import make_experience
from rlhf_jax.ppo.forward import run_models
from rlhf_jax.ppo.options import Hyper
from rlhf_jax.ppo.state import Frozen, PPOState
from rlhf_jax.training import optimizers
from rlhf_jax.training.allocator import keep_freed_memory


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="benchmark")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--response", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--minibatches", type=int, default=1)
    parser.add_argument("--chunk_size", type=int, default=0)
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--mean", type=float, default=0)
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--before", action="store_true")
    parser.add_argument("--repeats", type=int, default=10)
    flags = parser.parse_args()
    keep_freed_memory()

    config = preset(flags.model)
    settings = ppo_config.get_config("tiny")
    settings.update(
        ppo_epochs=flags.epochs,
        minibatches=flags.minibatches,
        chunk_size=flags.chunk_size,
        beta_sft=0.0,
        kl_coef=0.05,
        max_response_tokens=flags.response,
    )
    if flags.samples > 1:
        settings.update(
            samples_per_prompt=flags.samples, advantage="grpo", baseline="none"
        )
    hyper = Hyper.from_config(settings, config.vocab_size)
    optimizer = optimizers.from_config(settings.optimizer)
    rates = np.zeros(hyper.num_updates, np.float32)

    @jax.jit
    def models():
        policy = ChatGLM(config, rngs=nnx.Rngs(0))
        reward = ScoreModel(policy, rngs=nnx.Rngs(1))
        value = ScoreModel(policy, rngs=nnx.Rngs(2)) if hyper.has_critic else None
        state = PPOState.create(
            policy,
            value,
            policy_optimizer=optimizer,
            value_optimizer=optimizer,
            hyper=hyper,
        )
        return state, Frozen(policy, reward)

    state, frozen = models()
    frozen = jax.tree.map(jnp.copy, frozen)  # because the state's buffers are donated
    batch = random_prompt_batch(
        flags.prompts, longest=flags.prompt, vocab_size=config.vocab_size
    )
    sampling = full_length(flags.response, vocab_size=config.vocab_size)

    if flags.mean:
        sampling = geometric(config.vocab_size, flags)

    @jax.jit
    def score(state, frozen, rolled, baseline, packed):
        outputs = run_models(state, frozen, rolled, packed, hyper=hyper)
        return make_experience(
            state, rolled, outputs, outputs.scores, baseline, hyper=hyper
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
    order = jax.jit(functools.partial(ppo.minibatches, hyper=hyper), static_argnums=1)
    count = flags.prompts * flags.samples

    def pack(rolled, rows, unit):
        return packing.pack_minibatches(
            jax.device_get(rolled), rows, pad_id=0, unit=unit
        )

    def operations_of(step):
        return functools.partial(count_flops, step)

    def parts_of(sample, packs: bool) -> dict:
        """Return the calls of an iteration, and those of which operations are counted
        with their arguments, by part."""
        now, key, every = {}, jax.random.key(0), np.arange(count)[None]

        def to_answer():
            return state.policy.model, batch, key, sampling

        def to_score():
            packed = None
            if packs:
                unit = hyper.minibatches * hyper.microbatches
                packed = pack(now["rollout"], every, unit)
                packed = jax.tree.map(lambda x: x[0], packed)
            return state, frozen, now["rollout"], jnp.zeros(count), packed

        def to_learn_from():
            packed = None
            if packs:
                rows = jax.device_get(order(key, count))
                packed = pack(now["rollout"], rows, hyper.microbatches)
            return state, now["experience"], None, key, (rates, rates), packed

        def generate():
            now["rollout"] = sample(*to_answer())
            return now["rollout"]

        def score_them():
            now["experience"], *rest = score(*to_score())
            return now["experience"], rest

        def update_both():
            nonlocal state
            state, metrics = update(*to_learn_from())
            return state, metrics

        return {
            "generate": (generate, sampling_operations, to_answer),
            "score": (score_them, functools.partial(count_flops, score), to_score),
            "update": (
                update_both,
                functools.partial(count_flops, update),
                to_learn_from,
            ),
        }

    sizes = {"samples": flags.samples, "rows": flags.rows}
    ways = {"": parts_of(functools.partial(rollout, **sizes), packs=True)}
    if flags.before:
        sample = functools.partial(rollout_in_one_batch, samples=flags.samples)
        ways["before_"] = parts_of(sample, packs=False)
    calls = {way + name: x for way, parts in ways.items() for name, x in parts.items()}
    results = measure(
        {name: call for name, (call, *_) in calls.items()},
        repeats=flags.repeats,
        work=count * flags.response,
        operations=lambda: {
            name: counting(*arguments())
            for name, (_, counting, arguments) in calls.items()
        },
    )
    for way, names in ways.items():
        parts = [results[way + name] for name in names]
        results[f"{way}iteration"] = whole_of(parts, results["peak_gflops"])
    if flags.before:
        for name in [*ways[""], "iteration"]:
            for clock in ("seconds", "processor_seconds"):
                ratio = results[f"before_{name}"][clock] / results[name][clock]
                results[name][f"ratio_of_{clock}"] = round(ratio, 2)
    print(json.dumps(vars(flags) | results))


def whole_of(parts: list[dict], peak_gflops: float) -> dict:
    """Return the figures of an iteration from those of its parts."""
    seconds = sum(part["seconds"] for part in parts)
    share = sum(part["gflop"] for part in parts) / seconds / peak_gflops
    return {
        "seconds": seconds,
        "processor_seconds": sum(part["processor_seconds"] for part in parts),
        "per_second": 1 / seconds,
        "of_peak": round(share, 3),
    }


def rollout_in_one_batch(model, batch, key, sampling, *, samples):
    """Sample as `rollout` does, every row to the longest."""
    batch = repeat_prompts(batch, samples)
    keys = row_keys(key, jnp.asarray(batch.index))
    out = generate(model, batch.prompts, batch.prompt_mask, keys, sampling)
    tokens, logprobs, lengths, ended = jax.device_get(
        (out.tokens, out.logprobs, out.lengths, out.ended)
    )
    done = np.ones_like(ended)
    return as_rollout(batch, Responses(tokens, logprobs, lengths, ended, done))


if __name__ == "__main__":
    main()
