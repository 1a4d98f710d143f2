"""Benchmark of sampling and PPO with Google's tunix, for comparison.

python benchmarks/peers/tunix_llama.py --row=generate|ppo [--repeats=10]

tunix needs an environment of its own: `pip install google-tunix==0.1.7`. Its Llama 3 of
the shape of the preset "benchmark" (4 layers, width 256, vocabulary 8,192): the same
matrices as GLM's, without biases; float32, random weights. 32 prompts of 16 to 64
tokens, 128 new tokens each, none of which ends a response. PPO: 4 epochs of one
minibatch, clipping and AdamW as in torch_glm.py; policy, reference and value model;
the length of the text replaces the reward model's score. tunix applies the vocabulary's
matrix to the prompt too. JSON: new tokens or iterations a second.
"""

import argparse
import json
import resource
import time

import jax
import numpy as np
import optax
from flax import nnx
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models.llama3.model import Llama3, ModelConfig
from tunix.rl.ppo.ppo_learner import PPOConfig, PPOLearner
from tunix.rl.rl_cluster import ClusterConfig, RLCluster, RLTrainingConfig, Role
from tunix.rl.rollout.base_rollout import RolloutConfig
from tunix.rl.utils import create_critic_model

CONFIG = ModelConfig(
    num_layers=4,
    vocab_size=8192,
    embed_dim=256,
    hidden_dim=688,
    num_heads=8,
    head_dim=32,
    num_kv_heads=2,
    rope_theta=10_000,
    norm_eps=1e-5,
)
ROWS, PROMPT, RESPONSE, EPOCHS = 32, 64, 128, 4


class Numbers:
    """A tokenizer whose text is the ids: "17 23 5"."""

    def encode(self, text):
        return [int(word) for word in text.split()]

    def decode(self, ids):
        return " ".join(map(str, ids))

    def bos_id(self):
        return None  # none is put before a prompt

    def eos_id(self):
        return CONFIG.vocab_size  # cannot be sampled

    def pad_id(self):
        return 0


class Backbone(Llama3):
    """A llama that ignores `segment_ids`, which tunix passes to value models."""

    def __call__(self, *inputs, segment_ids=None, **fields):
        return super().__call__(*inputs, **fields)


def llama(kind=Llama3):
    """Create a model with random weights; tunix's own weights are 0 in the MLPs."""
    rngs = nnx.Rngs(0)
    model = kind(CONFIG, rngs=rngs)
    for layer in model.layers:
        for linear in (layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj):
            shape = linear.kernel.shape
            linear.kernel[...] = 0.01 * jax.random.normal(rngs.params(), shape)
    return model


def prompts():
    """Return texts of 16 to 64 random tokens."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(PROMPT // 4, PROMPT + 1, ROWS)
    ids = [rng.integers(4, CONFIG.vocab_size, n) for n in lengths]
    return [Numbers().decode(row) for row in ids]


def generate(turns: int):
    """Clocks at the start of every call and after the last."""
    cache = CacheConfig(
        PROMPT + RESPONSE, CONFIG.num_layers, CONFIG.num_kv_heads, CONFIG.head_dim
    )
    sampler, texts = Sampler(llama(), Numbers(), cache), prompts()
    marks = [clocks()]
    for seed in range(turns):
        sampled = sampler(
            texts,
            max_generation_steps=RESPONSE,
            max_prompt_length=PROMPT,
            temperature=1.0,
            top_p=1.0,
            seed=seed,
        )
        marks.append(clocks())
        assert all(len(row) == RESPONSE for row in sampled.tokens)
    return marks, ROWS * RESPONSE


def ppo(turns: int):
    """Clocks whenever the learner asks for a batch: the last one is finished."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(1e-6, b2=0.95, weight_decay=0.1)
    )
    training = RLTrainingConfig(
        actor_optimizer=optimizer,
        critic_optimizer=optimizer,
        eval_every_n_steps=10**9,
        max_steps=10**9,  # the batches end first
    )
    rollout = RolloutConfig(
        max_tokens_to_generate=RESPONSE,
        max_prompt_length=PROMPT,
        kv_cache_size=PROMPT + RESPONSE,
        temperature=1.0,
        top_p=1.0,
    )
    cluster = RLCluster(
        actor=llama(),
        reference=llama(),
        critic=create_critic_model(llama(Backbone)),
        tokenizer=Numbers(),
        cluster_config=ClusterConfig(
            role_to_mesh=dict.fromkeys(Role, mesh),
            training_config=training,
            rollout_config=rollout,
        ),
    )
    learner = PPOLearner(
        cluster,
        PPOConfig(num_iterations=EPOCHS, beta=0.05, kl_method="kl"),
        reward_fns=lambda prompts, completions, **_: list(map(len, completions)),
    )
    marks = []

    def batches():
        for _ in range(turns):
            marks.append(clocks())
            yield {"prompts": np.array(prompts())}
        marks.append(clocks())

    learner.train(batches())
    assert cluster.actor_trainer.train_steps == EPOCHS * turns
    return marks, 1


def clocks():
    return time.perf_counter(), time.process_time()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--row", choices=("generate", "ppo"), required=True)
    parser.add_argument("--repeats", type=int, default=10)
    flags = parser.parse_args()

    run = {"generate": generate, "ppo": ppo}[flags.row]
    marks, work = run(flags.repeats + 2)  # the first compiles, the second warms up
    wall, busy = np.diff(marks, axis=0).T
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    rates = np.quantile(work / wall[2:], (0.25, 0.5, 0.75))
    results = vars(flags) | {
        "per_second": round(rates[1], 4),
        "quartiles": rates[[0, 2]].round(4).tolist(),
        "processor_seconds": round(np.median(busy[2:]), 3),
        "first_seconds": round(wall[0], 1),
        "peak_gib": round(peak, 2),
    }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
