"""The details of PPO that fail silently when they are wrong."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rlhf_jax.batches import PromptBatch
from rlhf_jax.generation.rollout import rollout
from rlhf_jax.generation.sampling import Sampling
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.heads import ScoreModel
from rlhf_jax.models.presets import preset
from rlhf_jax.stages import ppo
from rlhf_jax.training.optimizers import adamw
from rlhf_jax.training.state import TrainState

NUM_TOKENS = 30
HYPER = ppo.Hyper(
    temperature=0.8,
    num_tokens=NUM_TOKENS,
    chunk_size=0,
    gamma=1.0,
    lam=0.95,
    clip_range=0.2,
    value_clip_range=0.2,
    beta_sft=0.0,
    whiten_advantages=False,
    missing_end_penalty=0.5,
    score_clip=10.0,
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


def optimizer(learning_rate: float):
    return adamw(
        lambda step: learning_rate,
        b1=0.9,
        b2=0.95,
        eps=1e-8,
        weight_decay=0.0,
        clip_norm=1.0,
    )


def make_state(learning_rate: float, kl_coef: float = 0.05):
    config = preset("micro", vocab_size=32, context_length=64)
    policy = ChatGLM(config, rngs=nnx.Rngs(0))
    policy = jax.tree.map(lambda x: 4 * x if x.ndim > 1 else x, policy)
    reward = ScoreModel(policy, rngs=nnx.Rngs(1))
    tx = optimizer(learning_rate)
    state = ppo.PPOState(
        TrainState.create(policy, tx),
        TrainState.create(ScoreModel(policy, rngs=nnx.Rngs(2)), tx),
        jnp.float32(kl_coef),
    )
    return state, ppo.Frozen(policy, reward), tx


def make_prompts(rows=8, width=5, pad=0):
    rng = np.random.default_rng(0)
    tokens = rng.integers(4, NUM_TOKENS, (rows, width)).astype(np.int32)
    lengths = rng.integers(1, width + 1, rows)
    mask = np.arange(width)[None] >= width - lengths[:, None]
    pads = ((0, 0), (pad, 0))
    return PromptBatch(
        jnp.asarray(np.pad(np.where(mask, tokens, 0), pads)),
        jnp.asarray(np.pad(mask, pads)),
        jnp.arange(rows),
    )


def experience_of(state, frozen, prompts, hyper=HYPER):
    rolled = rollout(state.policy.model, prompts, jax.random.key(0), SAMPLING)
    baseline = jnp.zeros(rolled.responses.shape[0])
    step = jax.jit(functools.partial(ppo.make_experience, hyper=hyper))
    return rolled, *step(state, frozen, rolled, baseline)


def update(state, experience, tx, hyper=HYPER, seed=1):
    step = jax.jit(
        functools.partial(
            ppo.update, hyper=hyper, policy_optimizer=tx, value_optimizer=tx
        )
    )
    return step(state, experience, None, jax.random.key(seed))


def test_the_first_ratio_is_1_and_sampler_and_trainer_agree():
    state, frozen, tx = make_state(1e-3)
    _, experience, metrics = experience_of(state, frozen, make_prompts())
    assert metrics["rollout/logprob_gap_max"] < 1e-4
    _, metrics = update(state, experience, tx)
    assert abs(metrics["val/ratio_first"].value() - 1) < 1e-4
    assert abs(metrics["val/ratio"].value() - 1) > 1e-6  # later ones move


def test_nothing_after_the_end_has_reward_advantage_value_or_logprob():
    state, frozen, _ = make_state(1e-3)
    rolled, experience, _ = experience_of(state, frozen, make_prompts())
    assert not rolled.response_mask.all()
    for name in ("old_logprobs", "old_values", "advantages", "returns"):
        array = np.asarray(getattr(experience, name))
        assert (array[~np.asarray(rolled.response_mask)] == 0).all(), name
        assert (array[np.asarray(rolled.response_mask)] != 0).any(), name


def test_left_padding_changes_no_advantage_and_no_update():
    state, frozen, tx = make_state(1e-3)
    results = []
    for pad in (0, 3):
        _, experience, _ = experience_of(state, frozen, make_prompts(pad=pad))
        new, _ = update(state, experience, tx)
        results.append((experience.advantages, experience.returns, new.policy.model))
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)


def test_microbatches_change_no_update():
    state, frozen, tx = make_state(1e-3)
    _, experience, _ = experience_of(state, frozen, make_prompts())
    whole, _ = update(state, experience, tx)
    parts, _ = update(state, experience, tx, dataclasses.replace(HYPER, microbatches=2))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_a_response_that_never_ends_pays_at_its_last_token():
    state, frozen, _ = make_state(1e-3)
    hyper = dataclasses.replace(HYPER, lam=0.0)  # the advantage is the TD error
    free = dataclasses.replace(hyper, missing_end_penalty=0.0)
    rolled, fined, _ = experience_of(state, frozen, make_prompts(), hyper)
    _, unfined, _ = experience_of(state, frozen, make_prompts(), free)
    difference = np.asarray(unfined.advantages - fined.advantages)
    ended = np.asarray(rolled.ended)
    assert ended.any()
    assert not ended.all()
    np.testing.assert_allclose(difference[ended], 0.0, atol=1e-6)
    np.testing.assert_allclose(difference[~ended, -1], 0.5, atol=1e-5)
    np.testing.assert_allclose(difference[~ended, :-1], 0.0, atol=1e-6)


def test_fractional_rewards_and_the_baseline_survive():
    state, frozen, _ = make_state(1e-3)
    prompts = make_prompts()
    rolled, plain, metrics = experience_of(state, frozen, prompts)
    step = functools.partial(ppo.make_experience, hyper=HYPER)
    shifted, _ = step(state, frozen, rolled, jnp.full(8, 0.25))
    last = np.asarray(rolled.response_mask).sum(-1) - 1
    rows = np.arange(8)
    change = np.asarray(plain.advantages - shifted.advantages)[rows, last]
    np.testing.assert_allclose(change, 0.25, atol=1e-5)
    assert metrics["objective/kl"].value() == pytest.approx(0.0, abs=1e-5)


def test_learning_rate_0_changes_nothing():
    state, frozen, tx = make_state(0.0)
    _, experience, _ = experience_of(state, frozen, make_prompts())
    new, _ = update(state, experience, tx)
    for a, b in zip(
        jax.tree.leaves((state.policy.model, state.value.model)),
        jax.tree.leaves((new.policy.model, new.value.model)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("kl_coef", "learns"), [(0.01, True), (1000.0, False)])
def test_a_bandit_finds_its_best_arm_unless_the_kl_is_too_dear(
    monkeypatch, kl_coef, learns
):
    """One token a response, and token 7 is worth 1: wrong signs fail here."""
    monkeypatch.setattr(
        ppo,
        "response_scores",
        lambda model, prompts, mask, responses, response_mask: (
            responses[:, :, 0] == 7
        ).astype(jnp.float32),
    )
    state, frozen, tx = make_state(3e-3, kl_coef)
    hyper = dataclasses.replace(
        HYPER, temperature=1.0, missing_end_penalty=0.0, score_clip=1e6
    )
    sampling = dataclasses.replace(SAMPLING, max_new_tokens=1, temperature=1.0)
    make = jax.jit(functools.partial(ppo.make_experience, hyper=hyper))
    step = jax.jit(
        functools.partial(
            ppo.update, hyper=hyper, policy_optimizer=tx, value_optimizer=tx
        )
    )
    prompts = make_prompts(rows=64)
    for i in range(30):
        rolled = rollout(state.policy.model, prompts, jax.random.key(i), sampling)
        experience, metrics = make(state, frozen, rolled, jnp.zeros(64))
        state, _ = step(state, experience, None, jax.random.key(100 + i))
    if learns:
        assert metrics["objective/scores"].value() > 0.8
    else:
        assert metrics["objective/scores"].value() < 0.2
        # To find the arm costs log(30) = 3.4 nats; Adam's steps wander a little.
        assert metrics["objective/kl"].value() < 0.3
