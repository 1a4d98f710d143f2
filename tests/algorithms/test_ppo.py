"""PPO's update, alone and behind its rollouts: the details that fail silently."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms import ppo
from rlhf_jax.generation.rollout import repeat_prompts, rollout
from rlhf_jax.generation.scoring import one_response, response_scores
from rlhf_jax.ppo import forward
from rlhf_jax.training.accumulate import value_and_grad
from tests.algorithms.ppo_parts import (
    HYPER,
    NUM_TOKENS,
    ROWS,
    SAMPLING,
    SGD,
    changed,
    experience_of,
    experience_step,
    make_prompts,
    make_sft,
    make_state,
    same,
    update,
)
from tests.trees import assert_trees_close


@pytest.mark.gpu
def test_the_first_ratio_is_1_and_sampler_and_trainer_agree():
    """At a temperature other than 1, with padding on both sides."""
    state, frozen, _ = make_state()
    _, experience, _, metrics = experience_of(state, frozen, make_prompts())
    assert metrics["rollout/logprob_gap_max"] < 1e-4
    assert metrics["rollout/ratio_outside"].value() == 0
    _, metrics = update(state, experience)
    assert abs(metrics["val/ratio_first"].value() - 1) < 1e-4
    assert abs(metrics["val/ratio"].value() - 1) > 1e-6  # later ones move


@pytest.mark.gpu
def test_the_gap_of_bfloat16_is_reported_and_the_first_ratio_is_still_1():
    """The ratio compares the trainer with itself, so rounding does not move it."""
    state, frozen, _ = make_state(dtype="bfloat16")
    _, experience, _, metrics = experience_of(state, frozen, make_prompts())
    assert 0 <= metrics["rollout/logprob_gap_mean"].value() < 0.05
    assert metrics["rollout/logprob_gap_max"] < 0.5
    assert 0 <= metrics["rollout/ratio_outside"].value() < 0.5
    _, metrics = update(state, experience)
    assert abs(metrics["val/ratio_first"].value() - 1) < 1e-4


def test_garbage_after_the_end_changes_no_loss_and_no_gradient():
    """Infinities where masked: a mask applied after `exp` would make them nan."""
    state, frozen, _ = make_state()
    rolled, experience, *_ = experience_of(state, frozen, make_prompts())
    mask = rolled.response_mask
    names = ("old_logprobs", "ref_logprobs", "advantages", "old_values", "returns")
    garbage = {
        name: jnp.where(mask, getattr(experience, name), jnp.inf) for name in names
    }
    garbage["responses"] = jnp.where(mask, experience.responses, NUM_TOKENS + 1)
    hyper = changed(kl_in_loss=True)
    clean, metrics = update(state, experience, hyper)
    dirty, dirty_metrics = update(
        state, dataclasses.replace(experience, **garbage), hyper
    )
    assert same((clean, metrics), (dirty, dirty_metrics))


def test_left_padding_changes_no_advantage_and_no_update():
    state, frozen, _ = make_state(tx=SGD)
    results = []
    for pad in (0, 3):
        _, experience, *_ = experience_of(state, frozen, make_prompts(pad=pad))
        new, _ = update(state, experience, learning_rate=0.1, tx=SGD)
        results.append((experience.advantages, experience.returns, new.policy.model))
    assert_trees_close(*results, atol=1e-5)


def test_right_padding_changes_no_advantage_and_no_update():
    state, frozen, _ = make_state(tx=SGD)
    rolled, experience, *_ = experience_of(state, frozen, make_prompts())

    def pad(x):
        return jnp.pad(x, ((0, 0), (0, 2)))

    padded = dataclasses.replace(
        rolled,
        responses=pad(rolled.responses),
        response_mask=pad(rolled.response_mask),
        logprobs=pad(rolled.logprobs),
    )
    longer, *_ = experience_step(HYPER)(state, frozen, padded, jnp.zeros(ROWS))
    np.testing.assert_allclose(pad(experience.advantages), longer.advantages, atol=1e-5)
    a, _ = update(state, experience, learning_rate=0.1, tx=SGD)
    b, _ = update(state, longer, learning_rate=0.1, tx=SGD)
    assert_trees_close(a.policy.model, b.policy.model, atol=1e-5)
    assert not same(a.policy.model, state.policy.model)


def test_the_order_of_a_batch_permutes_advantages_and_changes_no_update():
    state, frozen, _ = make_state()
    whole = changed(minibatches=1)
    rolled, experience, *_ = experience_of(state, frozen, make_prompts(), whole)
    order = np.random.default_rng(0).permutation(ROWS)
    shuffled = jax.tree.map(lambda x: x[order], rolled)
    other, *_ = experience_step(whole)(state, frozen, shuffled, jnp.zeros(ROWS))
    np.testing.assert_allclose(
        experience.advantages[order], other.advantages, atol=1e-5
    )
    a, _ = update(state, experience, whole)
    b, _ = update(state, other, whole)
    assert_trees_close(a.policy.model, b.policy.model, atol=1e-4)


def test_microbatches_change_no_gradient_and_no_loss():
    """The sum over tokens, not the mean of means: their parts have unequal counts."""
    state, frozen, _ = make_state()
    hyper = changed(beta_sft=0.3)
    _, experience, *_ = experience_of(state, frozen, make_prompts(), hyper)
    sft = make_sft()
    assert len(set(np.asarray(experience.response_mask).sum(-1))) > 1
    share = functools.partial(
        ppo.policy_loss_fn,
        count=experience.response_mask.sum(),
        num_sft_tokens=sft.loss_mask.sum(),
        kl_coef=state.kl_coef,
        hyper=hyper,
    )
    results = [
        jax.jit(functools.partial(value_and_grad, share, microbatches=parts))(
            state.policy.model, (experience, sft)
        )
        for parts in (1, 4)
    ]
    assert_trees_close(*results, atol=2e-4)


@pytest.mark.parametrize("advantage", ["rloo", "grpo", "remax"])
def test_without_a_critic_a_response_has_one_advantage_and_there_is_no_value(advantage):
    state, frozen, _ = make_state(critic=False)
    hyper = changed(advantage=advantage, samples_per_prompt=2, missing_end_penalty=0.0)
    prompts = repeat_prompts(make_prompts(rows=4), 2)
    rolled, experience, _, metrics = experience_of(state, frozen, prompts, hyper, 0.25)
    assert experience.old_values is None
    assert experience.returns is None
    assert "val/explained_variance" not in metrics
    mask, got = np.asarray(rolled.response_mask), np.asarray(experience.advantages)
    assert (got[~mask] == 0).all()
    scores = np.asarray(
        response_scores(frozen.reward, *one_response(rolled))[:, 0]
    ).reshape(4, 2)
    expected = {
        "rloo": scores - scores[:, ::-1],  # the other one is left out
        "grpo": np.sign(scores - scores[:, ::-1]),
        "remax": scores - 0.25,
    }[advantage].reshape(8)
    np.testing.assert_allclose(got[:, 0], expected, atol=5e-3)
    np.testing.assert_allclose(got, np.where(mask, got[:, :1], 0.0), atol=1e-6)
    new, metrics = update(state, experience, hyper)
    assert new.value is None
    assert "loss/value" not in metrics
    assert not same(new.policy.model, state.policy.model)


def test_the_frozen_models_are_no_part_of_what_is_updated():
    """No gradient can reach them, and no optimizer state belongs to them."""
    state, frozen, _ = make_state()
    _, experience, *_ = experience_of(state, frozen, make_prompts())
    new, _ = update(state, experience)
    count = sum(x.size for x in jax.tree.leaves(new))
    trained = (state.policy.model, state.value.model)
    # Adam keeps two numbers for each parameter.
    assert count < 3.1 * sum(x.size for x in jax.tree.leaves(trained))
    assert same(frozen, make_state()[1])
    assert not same(new.policy.model, state.policy.model)
    assert not same(new.value.model, state.value.model)


def test_learning_rate_0_changes_no_model_and_no_metric():
    state, frozen, _ = make_state()
    hyper = changed(ppo_epochs=2)
    _, experience, _, first = experience_of(state, frozen, make_prompts())
    new, updated = update(state, experience, hyper, learning_rate=0.0)
    assert same(state.policy.model, new.policy.model)
    assert same(state.value.model, new.value.model)
    assert updated["val/ratio"].value() == pytest.approx(1.0, abs=1e-6)
    assert updated["policy/approxkl"].value() == pytest.approx(0.0, abs=1e-9)
    assert updated["policy/clipfrac"].value() == 0.0
    *_, second = experience_of(new, frozen, make_prompts())
    assert same(first, second)


def test_a_gradient_that_is_not_finite_is_skipped_and_counted_for_either_model():
    state, frozen, _ = make_state()
    _, experience, *_ = experience_of(state, frozen, make_prompts())
    bad = jnp.full_like(experience.advantages, jnp.nan)
    for field, kept in (("advantages", "policy"), ("returns", "value")):
        broken = dataclasses.replace(experience, **{field: bad})
        new, metrics = update(state, broken)
        assert same(getattr(new, kept).model, getattr(state, kept).model)
        assert same(getattr(new, kept).opt_state, getattr(state, kept).opt_state)
        other = {"policy": "value", "value": "policy"}[kept]
        assert not same(getattr(new, other).model, getattr(state, other).model)
        assert metrics["optim/skipped"] == 2  # both minibatches, in a row
        _, metrics = update(new, broken)
        assert metrics["optim/skipped"] == 4
        _, metrics = update(new, experience)
        assert metrics["optim/skipped"] == 0


def test_dual_clip_bounds_the_loss_of_tokens_that_became_far_likelier():
    state, frozen, _ = make_state()
    _, experience, *_ = experience_of(state, frozen, make_prompts())
    far = dataclasses.replace(
        experience,
        old_logprobs=experience.old_logprobs - 3.0,
        advantages=jnp.where(experience.response_mask, -1.0, 0.0),
    )
    _, free = update(state, far)
    _, bounded = update(state, far, changed(dual_clip=3.0))
    assert free["loss/policy"].value() > 10  # the ratio is exp(3)
    assert bounded["loss/policy"].value() == pytest.approx(3.0, abs=1e-3)


def test_the_kl_in_the_loss_pulls_to_the_reference_and_leaves_the_rewards_alone():
    state, frozen, _ = make_state(kl_coef=3.0)
    hyper = changed(kl_in_loss=True)
    drifted = jax.tree.map(lambda x: 1.1 * x, state.policy.model)
    state = dataclasses.replace(
        state, policy=dataclasses.replace(state.policy, model=drifted)
    )
    _, experience, _, metrics = experience_of(state, frozen, make_prompts(), hyper)
    free = dataclasses.replace(state, kl_coef=jnp.float32(0.0))
    _, unpaid, *_ = experience_of(free, frozen, make_prompts(), hyper)
    assert same(experience.advantages, unpaid.advantages)
    still = dataclasses.replace(
        experience, advantages=jnp.zeros_like(experience.advantages)
    )
    before = None
    for _ in range(5):
        state, metrics = update(state, still, hyper)
        before = before or metrics["loss/kl"].value()
    assert metrics["loss/kl"].value() < 0.8 * before


@pytest.mark.parametrize(
    ("advantage", "kl_coef", "learns"),
    [
        ("gae", 0.01, True),
        ("gae", 1000.0, False),
        ("rloo", 0.01, True),
    ],
)
def test_a_bandit_finds_its_best_arm_unless_the_kl_is_too_dear(
    monkeypatch, advantage, kl_coef, learns
):
    """One token a response, and token 7 is worth 1: wrong signs fail here."""
    monkeypatch.setattr(
        forward,
        "response_scores",
        lambda model, prompts, mask, responses, response_mask: (
            responses[:, :, 0] == 7
        ).astype(jnp.float32),
    )
    state, frozen, _ = make_state(kl_coef=kl_coef, critic=advantage == "gae")
    hyper = changed(
        temperature=1.0,
        missing_end_penalty=0.0,
        score_clip=1e6,
        advantage=advantage,
        samples_per_prompt=8,
    )
    sampling = dataclasses.replace(SAMPLING, max_new_tokens=1, temperature=1.0)
    make = experience_step(hyper)
    prompts = repeat_prompts(make_prompts(), 8)
    for i in range(30):
        rolled = rollout(state.policy.model, prompts, jax.random.key(i), sampling)
        experience, _, metrics = make(state, frozen, rolled, jnp.zeros(64))
        state, _ = update(state, experience, hyper, 100 + i, learning_rate=3e-3)
    if learns:
        assert metrics["objective/scores"].value() > 0.8
    else:
        assert metrics["objective/scores"].value() < 0.2
        # To find the arm costs log(30) = 3.4 nats; Adam's steps wander a little.
        assert metrics["objective/kl"].value() < 0.3
