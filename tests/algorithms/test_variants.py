"""Variants of PPO, from the rollout to the update: who learns, with what weight."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.generation.rollout import repeat_prompts, rollout
from rlhf_jax.ppo.experience import correct_sampler, differing_groups, make_experience
from rlhf_jax.ppo.forward import policy_logprobs, run_models
from rlhf_jax.ppo.state import move_reference
from tests.algorithms.ppo_parts import (
    ROWS,
    SAMPLING,
    SGD,
    changed,
    experience_step,
    make_prompts,
    make_state,
    same,
    update,
)
from tests.trees import assert_trees_close

GROUPS = {
    "samples_per_prompt": 2,
    "missing_end_penalty": 0.0,
    "minibatches": 1,
    "kl_in_loss": True,
}
VARIANTS = {
    "dapo": {"advantage": "grpo", "clip_range_high": 0.3, "mask_overlong": True},
    "dr_grpo": {
        "advantage": "grpo",
        "group_std": False,
        "loss_aggregation": "constant",
        "entropy_coef": 0.1,
    },
    "gspo": {
        "advantage": "grpo",
        "objective": "gspo",
        "loss_aggregation": "response",
        "rollout_correction": "response",
    },
    "cispo": {
        "advantage": "rloo",
        "objective": "cispo",
        "rollout_correction": "token",
    },
    "reinforce_pp": {"advantage": "reinforce_pp", "kl_in_loss": False},
}


@functools.cache
def rolled():
    state, *_ = make_state(critic=False)
    prompts = repeat_prompts(make_prompts(rows=ROWS // 2), 2)
    return rollout(state.policy.model, prompts, jax.random.key(0), SAMPLING)


def another_sampler(gap=0.3):
    """The rollout of a sampler that thinks its tokens less likely by `gap` nats in the
    first half of the rows, and likelier in the others."""
    sign = np.where(np.arange(ROWS) < ROWS // 2, -1.0, 1.0)[:, None]
    return dataclasses.replace(rolled(), logprobs=rolled().logprobs + gap * sign)


def experience_of(responses, hyper, state=None, frozen=None):
    if state is None:
        state, frozen, _ = make_state(critic=False, tx=SGD)
    return experience_step(hyper)(state, frozen, responses, jnp.zeros(ROWS))


def step(experience, hyper, state=None):
    """The policy after a step of plain descent, and the metrics of the step."""
    state = state or make_state(critic=False, tx=SGD)[0]
    new, metrics = update(state, experience, hyper, learning_rate=0.1, tx=SGD)
    return new, metrics


@pytest.mark.parametrize("name", VARIANTS)
def test_order_padding_and_microbatches_change_no_update(name):
    """Groups in another order, wider responses, and the batch in four parts."""
    hyper = changed(**GROUPS | VARIANTS[name])
    experience, *_ = experience_of(another_sampler(), hyper)
    expected, metrics = step(experience, hyper)
    order = np.arange(ROWS).reshape(-1, 2)[[2, 0, 3, 1]].reshape(-1)

    def moved(x):
        wide = [(0, 0), (0, 2)] if x.shape[1:] == experience.responses.shape[1:] else []
        return jnp.pad(x[order], wide) if wide else x[order]

    parts = dataclasses.replace(hyper, microbatches=4)
    other, *_ = experience_of(jax.tree.map(moved, another_sampler()), parts)
    np.testing.assert_allclose(
        other.advantages, moved(experience.advantages), atol=1e-5
    )
    found, other_metrics = step(other, parts)
    assert_trees_close(found.policy.model, expected.policy.model, atol=1e-5)
    assert not same(expected.policy.model, make_state()[0].policy.model)
    for key in ("loss/policy", "policy/clipfrac", "val/ratio"):
        assert other_metrics[key].value() == pytest.approx(
            metrics[key].value(), abs=1e-5
        )


def test_what_is_left_out_of_the_update_is_as_if_it_were_not_there():
    """Overlong responses, and those that are not wanted: garbage in their place changes
    neither the update nor a loss, and the mean is over the others."""
    hyper = changed(**GROUPS | VARIANTS["dapo"])
    state, frozen, _ = make_state(critic=False, tx=SGD)
    ended = np.asarray(rolled().ended)
    assert ended.any()
    assert not ended.all()
    outputs = run_models(state, frozen, rolled(), hyper=hyper)
    wanted = np.arange(ROWS) != int(np.flatnonzero(ended)[0])
    arguments = (state, rolled(), outputs, outputs.scores, jnp.zeros(ROWS), wanted)
    experience, _, metrics = make_experience(*arguments, hyper=hyper)
    left = ended & wanted
    mask = np.asarray(rolled().response_mask) & left[:, None]
    np.testing.assert_array_equal(experience.response_mask, mask)
    assert metrics["response/learned_fraction"].value() == left.mean()
    # The group's mean still has the scores of all its responses.
    all_of_them, *_ = experience_of(rolled(), changed(**GROUPS, advantage="grpo"))
    np.testing.assert_allclose(experience.advantages, all_of_them.advantages, atol=1e-5)
    new, metrics = step(experience, hyper)
    garbage = dataclasses.replace(
        experience,
        advantages=jnp.where(left[:, None], experience.advantages, 1e9),
        old_logprobs=jnp.where(left[:, None], experience.old_logprobs, 7.0),
    )
    assert same(step(garbage, hyper), (new, metrics))
    expected = -np.asarray(experience.advantages)[mask].mean()  # the ratio is 1
    assert metrics["loss/policy"].value() == pytest.approx(expected, abs=1e-5)


def test_a_batch_with_nothing_to_learn_changes_nothing_and_has_losses_of_0():
    hyper = changed(**GROUPS | VARIANTS["dapo"])
    experience, *_ = experience_of(rolled(), hyper)
    empty = dataclasses.replace(
        experience, response_mask=jnp.zeros_like(experience.response_mask)
    )
    state, *_ = make_state(critic=False, tx=SGD)
    new, metrics = step(empty, hyper, state)
    assert same(new.policy.model, state.policy.model)
    assert metrics["loss/policy"].value() == metrics["loss/kl"].value() == 0


def test_a_planted_gap_is_corrected_token_by_token_or_by_response():
    """exp(+-0.3 n), cut at 2: the trainer's probability is the larger in the first
    half."""
    mask = np.asarray(rolled().response_mask)
    lengths = mask.sum(-1, keepdims=True)
    sign = np.where(np.arange(ROWS) < ROWS // 2, 1.0, -1.0)[:, None]
    for level, exponent in (("token", 1), ("response", lengths)):
        hyper = changed(**GROUPS | VARIANTS["cispo"] | {"rollout_correction": level})
        experience, _, metrics = experience_of(another_sampler(), hyper)
        expected = np.minimum(np.exp(0.3 * sign * exponent), 2.0) * mask
        np.testing.assert_allclose(experience.weights, expected, rtol=1e-4)
        np.testing.assert_array_equal(experience.response_mask, mask)
        capped = (expected == 2.0)[mask].mean()
        for name, number in {
            "weight_mean": expected[mask].mean(),
            "weight_capped": capped,
        }.items():
            assert metrics[f"rollout/{name}"].value() == pytest.approx(number, rel=1e-4)
        assert float(metrics["rollout/weight_min"]) == pytest.approx(
            expected[mask].min(), rel=1e-4
        )
    assert 0 < capped < 1


def test_the_weights_scale_the_policy_loss_of_their_tokens_alone():
    hyper = changed(**GROUPS | VARIANTS["cispo"] | {"advantage": "grpo"})
    hyper = dataclasses.replace(hyper, objective="ppo")
    experience, *_ = experience_of(another_sampler(), hyper)
    _, metrics = step(experience, hyper)
    mask = np.asarray(experience.response_mask)
    terms = -np.asarray(experience.weights * experience.advantages)  # the ratio is 1
    assert metrics["loss/policy"].value() == pytest.approx(terms[mask].mean(), abs=1e-5)
    unweighted = dataclasses.replace(experience, weights=None)
    _, plain = step(unweighted, hyper)
    assert plain["loss/policy"].value() != pytest.approx(terms[mask].mean(), abs=1e-3)
    assert plain["loss/kl"].value() == metrics["loss/kl"].value()


def test_a_sampler_too_far_away_is_left_out():
    """One row differs by 0.6 nats a token, the others by 0.3; the limit is 0.5."""
    far = another_sampler().logprobs.at[3].add(-0.3)
    responses = dataclasses.replace(rolled(), logprobs=far)
    hyper = changed(**GROUPS | VARIANTS["cispo"])
    experience, _, metrics = experience_of(responses, hyper)
    learned = np.asarray(experience.response_mask).any(-1)
    np.testing.assert_array_equal(learned, np.arange(ROWS) != 3)
    assert metrics["response/learned_fraction"].value() == 1 - 1 / ROWS
    free = dataclasses.replace(hyper, rollout_error_limit=float("inf"))
    experience, *_ = experience_of(responses, free)
    assert np.asarray(experience.response_mask).any(-1).all()


def test_a_policy_without_numbers_is_not_hidden_by_the_correction():
    """All responses of NaN left out would be an update of 0, and no sign of a fault."""
    hyper = changed(**GROUPS | VARIANTS["cispo"])
    nothing = jnp.full_like(rolled().logprobs, jnp.nan)
    is_close, _ = correct_sampler(another_sampler(), nothing, hyper=hyper)
    assert is_close.all()


@pytest.mark.parametrize(
    ("correction", "sampler", "level"),
    [
        ("auto", "same", None),
        ("auto", "int8", "token"),
        ("none", "int8", None),
        ("response", "same", "response"),
    ],
)
def test_the_correction_is_on_by_default_where_the_sampler_is_in_int8(
    correction, sampler, level
):
    hyper = changed(rollout_correction=correction, rollout_param_dtype=sampler)
    assert hyper.correction_level == level


def test_the_entropy_bonus_raises_the_entropy():
    hyper = changed(**GROUPS, advantage="grpo", entropy_coef=1.0)
    state, frozen, _ = make_state(critic=False, tx=SGD, kl_coef=0.0)
    experience, *_ = experience_of(rolled(), hyper, state, frozen)
    still = dataclasses.replace(
        experience, advantages=jnp.zeros_like(experience.advantages)
    )
    new, before = step(still, hyper, state)
    entropy = policy_logprobs(state.policy.model, still, hyper=hyper).entropy
    expected = np.asarray(entropy)[np.asarray(still.response_mask)].mean()
    assert before["policy/entropy"].value() == pytest.approx(expected, rel=1e-4)
    _, after = step(still, hyper, new)
    assert after["policy/entropy"].value() > before["policy/entropy"].value() + 1e-3


def test_a_moving_reference_follows_the_policy_and_is_the_one_of_the_kl():
    hyper = changed(**GROUPS, advantage="grpo", reference_rate=0.25)
    state, frozen, _ = make_state(critic=False, tx=SGD)
    behind = jax.tree.map(lambda x: 0.9 * x, frozen.reference)
    state = dataclasses.replace(state, reference=behind)
    bare = dataclasses.replace(frozen, reference=None)
    experience, _, metrics = experience_of(rolled(), hyper, state, bare)
    fixed = dataclasses.replace(frozen, reference=behind)
    still = dataclasses.replace(state, reference=None)
    expected, _, fixed_metrics = experience_of(rolled(), hyper, still, fixed)
    assert same(experience.ref_logprobs, expected.ref_logprobs)
    assert metrics["objective/kl"].value() == fixed_metrics["objective/kl"].value() != 0
    new, _ = step(experience, hyper, state)
    average = jax.tree.map(lambda r, p: 0.75 * r + 0.25 * p, behind, new.policy.model)
    assert_trees_close(new.reference, average, atol=1e-6)
    assert same(move_reference(behind, new.policy.model, rate=0.0), behind)
    assert_trees_close(
        move_reference(behind, new.policy.model, rate=1.0),
        new.policy.model,
        atol=1e-6,
    )


def test_a_group_differs_where_one_of_its_responses_has_no_end():
    """Equal scores, but for the penalty of a missing end."""
    scores = jnp.array([1.0, 1.0, 1.0, 1.0, 0.0, 1.0])
    ended = jnp.array([True, True, True, False, True, True])
    for penalty, expected in ((0.0, [False, False, True]), (0.5, [False, True, True])):
        hyper = changed(**GROUPS | {"missing_end_penalty": penalty})
        assert differing_groups(scores, ended, hyper=hyper).tolist() == expected
