"""PPO's experience: the details that fail silently."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.data.batching import pad_right
from rlhf_jax.generation.rollout import repeat_prompts, rollout
from rlhf_jax.models.heads import ScoreModel, last_real_token
from rlhf_jax.ppo.experience import estimate_advantages
from tests.algorithms.ppo_parts import (
    ROWS,
    SAMPLING,
    changed,
    experience_of,
    make_prompts,
    make_state,
)


def test_another_temperature_than_the_rollouts_shows_in_the_gap():
    state, frozen, _ = make_state()
    hyper = changed(temperature=1.0)
    *_, metrics = experience_of(state, frozen, make_prompts(), hyper)
    assert metrics["rollout/logprob_gap_max"] > 0.05
    assert metrics["rollout/ratio_outside"].value() > 0.05


def test_nothing_after_the_end_has_reward_advantage_value_or_logprob():
    state, frozen, _ = make_state()
    rolled, experience, *_ = experience_of(state, frozen, make_prompts())
    real = np.asarray(rolled.response_mask)
    assert not real.all()
    arrays = (
        experience.old_logprobs,
        experience.ref_logprobs,
        experience.old_values,
        experience.advantages,
        experience.returns,
    )
    for array in map(np.asarray, arrays):
        assert (array[~real] == 0).all()
        assert (array[real] != 0).any()


def test_a_response_that_never_ends_pays_at_its_last_token():
    state, frozen, _ = make_state()
    hyper = changed(lam=0.0)  # the advantage is the TD error
    free = dataclasses.replace(hyper, missing_end_penalty=0.0)
    rolled, fined, *_ = experience_of(state, frozen, make_prompts(), hyper)
    _, unfined, *_ = experience_of(state, frozen, make_prompts(), free)
    difference = np.asarray(unfined.advantages - fined.advantages)
    ended = np.asarray(rolled.ended)
    assert ended.any()
    assert not ended.all()
    np.testing.assert_allclose(difference[ended], 0.0, atol=1e-6)
    np.testing.assert_allclose(difference[~ended, -1], 0.5, atol=1e-5)
    np.testing.assert_allclose(difference[~ended, :-1], 0.0, atol=1e-6)


def test_the_score_stands_at_the_last_token_and_is_that_of_the_whole_response():
    """With KL, discount and values out of the way, returns are the score itself."""
    state, frozen, _ = make_state(kl_coef=0.0)
    hyper = changed(lam=1.0, missing_end_penalty=0.0)
    rolled, experience, *_ = experience_of(state, frozen, make_prompts(), hyper)
    found = jax.tree.map(np.asarray, rolled)
    rows = [
        [*found.prompts[row][found.prompt_mask[row]], *response[mask]]
        for row, (response, mask) in enumerate(
            zip(found.responses, found.response_mask, strict=True)
        )
    ]
    tokens, mask = map(jnp.asarray, pad_right(rows, 11, 0))  # no padding in between
    scores = last_real_token(
        jax.jit(ScoreModel.__call__)(frozen.reward, tokens, mask), mask
    )
    expected = np.where(found.response_mask, np.asarray(scores)[:, None], 0.0)
    np.testing.assert_allclose(experience.returns, expected, atol=1e-4)


def test_fractional_rewards_and_the_baseline_survive():
    state, frozen, _ = make_state()
    rolled, plain, _, metrics = experience_of(state, frozen, make_prompts())
    _, shifted, *_ = experience_of(state, frozen, make_prompts(), baseline=0.25)
    last = np.asarray(rolled.response_mask).sum(-1) - 1
    change = np.asarray(plain.advantages - shifted.advantages)[np.arange(ROWS), last]
    np.testing.assert_allclose(change, 0.25, atol=1e-5)
    assert metrics["objective/kl"].value() == pytest.approx(0.0, abs=1e-5)


def test_scores_are_normalised_by_all_that_was_seen():
    state, frozen, _ = make_state(kl_coef=0.0)
    hyper = changed(
        normalise_scores=True, missing_end_penalty=0.0, lam=1.0, value_clip_range=1e6
    )
    _, experience, changes, metrics = experience_of(
        state, frozen, make_prompts(), hyper
    )
    normalised = np.asarray(experience.returns[:, 0])
    assert normalised.mean() == pytest.approx(0.0, abs=1e-5)
    assert normalised.std() == pytest.approx(1.0, abs=1e-4)
    assert float(changes["moments"].count) == ROWS
    mean = float(changes["moments"].mean)
    assert metrics["objective/scores"].value() == pytest.approx(mean, abs=1e-5)
    after = dataclasses.replace(state, **changes)
    _, _, changes, _ = experience_of(after, frozen, make_prompts(), hyper)
    assert float(changes["moments"].count) == 2 * ROWS


def test_whitened_advantages_have_mean_0_and_variance_1_over_real_tokens():
    state, frozen, _ = make_state()
    hyper = changed(whiten_advantages=True)
    rolled, experience, *_ = experience_of(state, frozen, make_prompts(), hyper)
    real = np.asarray(experience.advantages)[np.asarray(rolled.response_mask)]
    assert real.mean() == pytest.approx(0.0, abs=1e-5)
    assert real.std() == pytest.approx(1.0, abs=1e-3)


def test_whitened_rewards_keep_their_mean():
    hyper = changed(whiten_rewards=True, lam=0.0, gamma=0.0)
    rng = np.random.default_rng(0)
    rewards = jnp.asarray(rng.normal(2.0, 5.0, (4, 6)), jnp.float32)
    mask = jnp.ones((4, 6), bool)
    whitened, _ = estimate_advantages(rewards, jnp.zeros((4, 6)), mask, hyper=hyper)
    assert whitened.mean() == pytest.approx(float(rewards.mean()), abs=1e-4)
    assert whitened.std() == pytest.approx(1.0, abs=1e-3)


def test_the_price_of_the_kl_follows_its_target():
    """The policy is its reference: the KL is 0, far below the target."""
    state, frozen, _ = make_state(kl_coef=0.1)
    hyper = changed(kl_target=5.0)
    _, _, changes, _ = experience_of(state, frozen, make_prompts(), hyper)
    assert float(changes["kl_coef"]) == pytest.approx(0.1 * (1 - 0.2 * ROWS / 100))


def test_several_responses_to_a_prompt_differ_and_the_first_keep_their_numbers():
    prompts = make_prompts(rows=4)
    repeated = repeat_prompts(prompts, 3)
    np.testing.assert_array_equal(repeated.index, np.arange(12))
    np.testing.assert_array_equal(repeated.prompts[::3], prompts.prompts)
    np.testing.assert_array_equal(repeated.prompts[2::3], prompts.prompts)
    state, _, _ = make_state()
    rolled = rollout(state.policy.model, repeated, jax.random.key(0), SAMPLING)
    responses = np.asarray(rolled.responses).reshape(4, 3, -1)
    assert (responses[:, 0] != responses[:, 1]).any(-1).all()
