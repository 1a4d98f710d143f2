"""Benchmark of one PPO iteration, in seconds: generate, score, update.

python -m benchmarks.ppo [--prompts=32] [--response=128] [--epochs=4] [--repeats=10]
    [--samples=1] [--mean=0] [--rows=0] [--whole_batch]

32 prompts of 16 to 64 tokens, 128 new tokens each (no response ends early), 4 epochs
of one minibatch; policy, value, reference and reward model of the preset "benchmark"
(4 layers, width 256, vocabulary 8,192; 7M parameters), random weights, no SFT term.
With `samples`, GRPO; with `mean`, lengths are geometric, with a mean of this part of
the longest. With `whole_batch` every row is sampled to the longest (whole_batch.py).
JSON: the seconds of every part and of the whole iteration.
"""

import argparse
import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.inputs import random_prompts, sampling_operations
from benchmarks.rollouts import geometric
from benchmarks.timing import measure
from benchmarks.whole_batch import generate
from configs import ppo as ppo_config
from rlhf_jax.algorithms import ppo
from rlhf_jax.data.batching import prompt_batch
from rlhf_jax.generation.rollout import as_rollout, repeat_prompts, rollout
from rlhf_jax.generation.rows import row_keys
from rlhf_jax.generation.sampling import Sampling
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
    parser.add_argument("--whole_batch", action="store_true")
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
    rates = optimizers.learning_rates(settings.optimizer, hyper.num_updates)

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
    prompts = random_prompts(
        flags.prompts, longest=flags.prompt, vocab_size=config.vocab_size
    )
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
        num_tokens=config.vocab_size,
    )

    if flags.mean:
        sampling = geometric(config.vocab_size, flags)

    @jax.jit
    def score(state, frozen, rolled, baseline):
        outputs = run_models(state, frozen, rolled, hyper=hyper)
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

    keys = map(jax.random.key, itertools.count())
    now = {}  # the outputs that the next parts read

    sample = rollout_in_one_batch if flags.whole_batch else rollout
    sample = functools.partial(sample, samples=flags.samples, rows=flags.rows)

    def to_answer():
        return state.policy.model, batch, next(keys), sampling

    def to_score():
        return state, frozen, now["rollout"], jnp.zeros(flags.prompts * flags.samples)

    def to_learn_from():
        return state, now["experience"], None, next(keys), (rates, rates)

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

    results = measure(
        {"generate": generate, "score": score_them, "update": update_both},
        repeats=flags.repeats,
        work=flags.prompts * flags.samples * flags.response,
        operations=lambda: {
            "generate": sampling_operations(*to_answer()),
            "score": count_flops(score, *to_score()),
            "update": count_flops(update, *to_learn_from()),
        },
    )
    parts = [results[name] for name in ("generate", "score", "update")]
    seconds = sum(part["seconds"] for part in parts)
    share = sum(part["gflop"] for part in parts) / seconds / results["peak_gflops"]
    results["iteration"] = {
        "seconds": seconds,
        "per_second": 1 / seconds,
        "of_peak": round(share, 3),
    }
    print(json.dumps(vars(flags) | results))


def rollout_in_one_batch(model, batch, key, sampling, *, samples, rows):
    """Sample as `rollout` does, every row to the longest; `rows` has no effect."""
    batch = repeat_prompts(batch, samples)
    keys = row_keys(key, jnp.asarray(batch.index))
    out = generate(model, batch.prompts, batch.prompt_mask, keys, sampling)
    return as_rollout(batch, out)


if __name__ == "__main__":
    main()
