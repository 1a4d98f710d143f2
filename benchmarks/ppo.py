"""Seconds of one PPO iteration: generate, score, update.

python -m benchmarks.ppo [--prompts=32] [--new_tokens=128] [--epochs=4] [--iterations=3]

32 prompts of 16 to 64 tokens, 128 new tokens each (no response ends early), 4 epochs
of one minibatch; policy, value, reference and reward model of the preset "benchmark"
(4 layers, width 256, vocabulary 8,192; 7M parameters), random weights, no SFT term.
The first iteration compiles and is reported apart; the others are given as medians.
"""

import argparse
import functools
import json
import statistics

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from configs import ppo as ppo_config
from rlhf_jax.data.batching import prompt_batch
from rlhf_jax.generation.rollout import rollout
from rlhf_jax.generation.sampling import Sampling
from rlhf_jax.losses.advantages import init_moments
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.heads import ScoreModel
from rlhf_jax.models.presets import num_parameters, preset
from rlhf_jax.training import optimizers, ppo
from rlhf_jax.training.allocator import keep_freed_memory
from rlhf_jax.training.metrics import Stopwatch
from rlhf_jax.training.state import TrainState

PARTS = ("generate", "score", "update")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="benchmark")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--prompt_tokens", type=int, default=64)
    parser.add_argument("--new_tokens", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--minibatches", type=int, default=1)
    parser.add_argument("--chunk_size", type=int, default=0)
    parser.add_argument("--iterations", type=int, default=3)
    flags = parser.parse_args()
    keep_freed_memory()

    config = preset(flags.model)
    settings = ppo_config.get_config("tiny")
    settings.update(
        ppo_epochs=flags.epochs,
        minibatches=flags.minibatches,
        chunk_size=flags.chunk_size,
        beta_sft=0.0,
        kl_ceiling=float("inf"),
    )
    fields = set(ppo.Hyper.__dataclass_fields__) - {"num_tokens"}
    hyper = ppo.Hyper(
        num_tokens=config.vocab_size, **{name: settings[name] for name in fields}
    )
    optimizer, _ = optimizers.from_config(settings.optimizer, 100)

    @jax.jit
    def models():
        policy = ChatGLM(config, rngs=nnx.Rngs(0))
        reward = ScoreModel(policy, rngs=nnx.Rngs(1))
        value = ScoreModel(policy, rngs=nnx.Rngs(2))
        state = ppo.PPOState(
            policy=TrainState.create(policy, optimizer),
            value=TrainState.create(value, optimizer),
            kl_coef=jnp.float32(0.05),
            moments=init_moments(),
            rollbacks=jnp.int32(0),
        )
        return state, ppo.Frozen(policy, reward)

    state, frozen = models()
    frozen = jax.tree.map(jnp.copy, frozen)  # the state's buffers are donated
    rng = np.random.default_rng(0)
    prompts = [
        rng.integers(4, config.vocab_size, rng.integers(16, flags.prompt_tokens + 1))
        for _ in range(flags.prompts)
    ]
    batch = prompt_batch(
        [prompt.tolist() for prompt in prompts],
        np.arange(flags.prompts),
        pad_id=0,
        width=flags.prompt_tokens,
    )
    sampling = Sampling(
        max_new_tokens=flags.new_tokens,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        min_new_tokens=flags.new_tokens,
        stop_ids=(0,),
        pad_id=0,
        num_tokens=config.vocab_size,
    )
    score = jax.jit(functools.partial(ppo.make_experience, hyper=hyper))
    update = jax.jit(
        functools.partial(
            ppo.update,
            hyper=hyper,
            policy_optimizer=optimizer,
            value_optimizer=optimizer,
        ),
        donate_argnums=0,
    )

    found = []
    for i in range(1 + flags.iterations):
        key, watch = jax.random.key(i), Stopwatch()
        rolled = rollout(state.policy.model, batch, key, sampling)
        jax.block_until_ready(rolled)
        seconds = [watch.lap()]
        experience, _, metrics = score(state, frozen, rolled, jnp.zeros(flags.prompts))
        jax.block_until_ready(experience)
        seconds.append(watch.lap())
        state, metrics = update(state, experience, None, key)
        jax.block_until_ready(metrics)
        found.append([*seconds, watch.lap()])
    first, *steady = found
    medians = [statistics.median(part) for part in zip(*steady, strict=True)]
    report = {
        "parameters": num_parameters(config),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "settings": vars(flags),
        "seconds": dict(zip(PARTS, medians, strict=True)) | {"all": sum(medians)},
        "first iteration": dict(zip(PARTS, first, strict=True)),
        "tokens per second": flags.prompts * flags.new_tokens / sum(medians),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
