"""The parts of one iteration of PPO, as small as they get, for tests."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rlhf_jax.algorithms import ppo
from rlhf_jax.batches import PromptBatch, SFTBatch
from rlhf_jax.generation.rollout import rollout
from rlhf_jax.generation.sampling import Sampling
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.heads import ScoreModel
from rlhf_jax.models.presets import preset
from rlhf_jax.ppo.experience import make_experience
from rlhf_jax.ppo.forward import run_models
from rlhf_jax.ppo.options import Hyper
from rlhf_jax.ppo.state import Frozen, PPOState
from rlhf_jax.training.optimizers import adamw, sgd

NUM_TOKENS = 30
HYPER = Hyper(
    num_tokens=NUM_TOKENS,
    temperature=0.8,
    chunk_size=0,
    advantage="gae",
    samples_per_prompt=1,
    max_response_tokens=6,
    group_std=True,
    group_epsilon=1e-4,
    normalise_scores=False,
    whiten_rewards=False,
    whiten_advantages=False,
    missing_end_penalty=0.5,
    mask_overlong=False,
    score_clip=10.0,
    kl_coef=0.05,
    kl_in_loss=False,
    kl_target=0.0,
    kl_horizon=100.0,
    reference_rate=0.0,
    rollout_param_dtype="same",
    prompts_ahead=0,
    one_step_off_policy=False,
    rollout_correction="none",
    rollout_weight_cap=2.0,
    rollout_error_limit=0.5,
    gamma=1.0,
    lam=0.95,
    objective="ppo",
    clip_range=0.2,
    clip_range_high=0.0,
    dual_clip=0.0,
    entropy_coef=0.0,
    loss_aggregation="token",
    value_clip_range=0.2,
    beta_sft=0.0,
    ppo_epochs=1,
    minibatches=2,
    microbatches=1,
)
SAMPLING = Sampling(
    max_new_tokens=6,
    temperature=0.8,
    top_k=0,
    top_p=1.0,
    min_new_tokens=0,
    stop_ids=(1, 2, 3),
    pad_id=0,
    num_tokens=NUM_TOKENS,
)
ROWS = 8


# A step of it is the gradient times the learning rate: no rounding error is divided by
# its own size, as that of a key's bias is in Adam.
SGD = sgd(None, clip_norm=0.0)


def optimizer():
    return adamw(
        None,
        b1=0.9,
        b2=0.95,
        eps=1e-8,
        weight_decay=0.0,
        clip_norm=1.0,
    )


@functools.cache
def make_models(dtype="float32"):
    config = preset(
        "micro", num_layers=1, vocab_size=32, context_length=64, dtype=dtype
    )
    policy = ChatGLM(config, rngs=nnx.Rngs(0))
    policy = jax.tree.map(lambda x: 4 * x if x.ndim > 1 else x, policy)
    reward = ScoreModel(policy, rngs=nnx.Rngs(1))
    return policy, reward, ScoreModel(policy, rngs=nnx.Rngs(2))


def make_state(*, kl_coef=0.05, critic=True, dtype="float32", tx=None):
    policy, reward, value = make_models(dtype)
    tx = tx or optimizer()
    state = PPOState.create(
        policy,
        value if critic else None,
        policy_optimizer=tx,
        value_optimizer=tx,
        hyper=changed(kl_coef=kl_coef),
    )
    return state, Frozen(policy, reward), tx


def make_prompts(rows=ROWS, width=5, pad=0):
    rng = np.random.default_rng(0)
    tokens = rng.integers(4, NUM_TOKENS, (rows, width)).astype(np.int32)
    lengths = rng.integers(1, width + 1, rows)
    mask = np.arange(width)[None] >= width - lengths[:, None]
    pads = ((0, 0), (pad, 0))
    return PromptBatch(
        np.pad(np.where(mask, tokens, 0), pads), np.pad(mask, pads), np.arange(rows)
    )


@functools.cache
def experience_step(hyper):
    """Compute the experience from models and rollout, in one program."""

    def step(state, frozen, rolled, baseline_scores):
        outputs = run_models(state, frozen, rolled, hyper=hyper)
        return make_experience(
            state, rolled, outputs, outputs.scores, baseline_scores, hyper=hyper
        )

    return jax.jit(step)


@functools.cache
def update_step(hyper, tx=None):
    tx = tx or optimizer()
    return jax.jit(
        functools.partial(
            ppo.train_step, hyper=hyper, policy_optimizer=tx, value_optimizer=tx
        )
    )


def changed(**fields) -> Hyper:
    return dataclasses.replace(HYPER, **fields)


def experience_of(state, frozen, prompts, hyper=HYPER, baseline=0.0):
    """(rollout, experience, changes of the state, metrics)."""
    rolled = rollout(state.policy.model, prompts, jax.random.key(0), SAMPLING)
    scores = jnp.full(rolled.responses.shape[0], baseline)
    return rolled, *experience_step(hyper)(state, frozen, rolled, scores)


def update(
    state, experience, hyper=HYPER, seed=1, sft=None, learning_rate=1e-3, tx=None
):
    key, num_updates = jax.random.key(seed), hyper.ppo_epochs * hyper.minibatches
    rates = jnp.full(num_updates, learning_rate)
    return update_step(hyper, tx)(state, experience, sft, key, (rates, rates))


def same(a, b) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


def make_sft(rows=ROWS, length=7):
    rng = np.random.default_rng(1)
    mask = np.arange(length)[None] < rng.integers(2, length + 1, (rows, 1))
    tokens = np.where(mask, rng.integers(4, NUM_TOKENS, (rows, length)), 0)
    # Neither the prompt nor an answer in the middle: those of another turn.
    loss_mask = mask & np.isin(np.arange(length), (2, 5, 6))
    return SFTBatch(jnp.asarray(tokens, jnp.int32), jnp.asarray(mask), loss_mask)
