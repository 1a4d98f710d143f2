from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.losses import masked
from rlhf_jax.losses.advantages import (
    RunningMoments,
    gae,
    groups_differ,
    grpo_advantages,
    init_moments,
    normalise,
    reference_baseline,
    reinforce_pp_advantages,
    rloo_advantages,
    update_moments,
)

RNG = np.random.default_rng(0)
# Full, right-padded, holes, padded on the left, one token, none.
MASKS = np.array(
    [
        [1, 1, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 0, 1, 0, 0, 1, 1],
        [0, 0, 1, 1, 1, 0, 0],
        [1, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0],
    ],
    dtype=bool,
)
REWARDS = RNG.normal(size=MASKS.shape).astype(np.float32)
VALUES = RNG.normal(size=MASKS.shape).astype(np.float32)
SCORES = RNG.normal(2.0, 3.0, (5, 4)).astype(np.float32)

grpo = partial(grpo_advantages, divide_by_std=True)
dr_grpo = partial(grpo_advantages, divide_by_std=False, epsilon=1e-4)


@partial(jax.jit, static_argnames=("gamma", "lam"))
def batched_gae(rewards, values, mask, *, gamma, lam):
    def one(rewards, values, mask):
        return gae(rewards=rewards, values=values, mask=mask, gamma=gamma, lam=lam)

    return jax.vmap(one)(rewards, values, mask)


def slow_gae(rewards, values, mask, gamma, lam):
    """The definition: a double sum over the real tokens, in float64."""
    out = np.zeros(rewards.shape)
    for b in range(len(mask)):
        real = np.flatnonzero(mask[b])
        r = rewards[b, real].astype(np.float64)
        v = np.append(values[b, real].astype(np.float64), 0.0)
        for i in range(len(real)):
            for j in range(i, len(real)):
                delta = r[j] + gamma * v[j + 1] - v[j]
                out[b, real[i]] += (gamma * lam) ** (j - i) * delta
    return out


@pytest.mark.parametrize("gamma,lam", [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.7, 0.0)])
def test_gae_equals_the_slow_double_sum(gamma, lam):
    out = batched_gae(REWARDS, VALUES, MASKS, gamma=gamma, lam=lam)
    expected = slow_gae(REWARDS, VALUES, MASKS, gamma, lam)
    np.testing.assert_allclose(out.advantages, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        out.returns, expected + np.where(MASKS, VALUES, 0), rtol=1e-5, atol=1e-5
    )


def test_gae_of_hand_written_numbers():
    # gamma 1/2, lam 1/2; rewards 1, 2, 4; values 2, 4, 8; the value after the end is 0.
    # delta = (1 + 4/2 - 2, 2 + 8/2 - 4, 4 - 8) = (1, 2, -4)
    # A_2 = -4,  A_1 = 2 - 4/4 = 1,  A_0 = 1 + 1/4 = 1.25
    out = gae(
        rewards=jnp.array([1.0, 2.0, 4.0, 7.0]),
        values=jnp.array([2.0, 4.0, 8.0, 7.0]),
        mask=jnp.array([True, True, True, False]),
        gamma=0.5,
        lam=0.5,
    )
    np.testing.assert_allclose(out.advantages, [1.25, 1.0, -4.0, 0.0])
    np.testing.assert_allclose(out.returns, [3.25, 5.0, 4.0, 0.0])


def test_gae_at_lam_one_is_the_discounted_return_minus_the_value():
    gamma = 0.9
    out = batched_gae(REWARDS, VALUES, MASKS, gamma=gamma, lam=1.0)
    for b, mask in enumerate(MASKS):
        real, total = np.flatnonzero(mask), 0.0
        for r in real[::-1]:
            total = REWARDS[b, r] + gamma * total
            np.testing.assert_allclose(out.returns[b, r], total, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(
                out.advantages[b, r], total - VALUES[b, r], rtol=1e-5, atol=1e-5
            )


def test_gae_at_lam_zero_is_the_td_error():
    gamma = 0.9
    out = batched_gae(REWARDS[:1], VALUES[:1], MASKS[:1], gamma=gamma, lam=0.0)
    after = np.append(VALUES[0, 1:], 0.0)
    np.testing.assert_allclose(
        out.advantages[0], REWARDS[0] + gamma * after - VALUES[0], rtol=1e-5, atol=1e-5
    )


def test_gae_with_exact_values_is_zero():
    gamma = 0.9
    rewards = REWARDS[0]
    values = np.zeros(8)
    for r in range(6, -1, -1):
        values[r] = rewards[r] + gamma * values[r + 1]
    out = batched_gae(
        rewards[None],
        values[None, :7].astype(np.float32),
        MASKS[:1],
        gamma=gamma,
        lam=0.8,
    )
    np.testing.assert_allclose(out.advantages, 0.0, atol=1e-6)


def test_masking_tokens_equals_deleting_them():
    mask = MASKS[2]
    with_holes = batched_gae(REWARDS[2:3], VALUES[2:3], MASKS[2:3], gamma=0.9, lam=0.8)
    deleted = batched_gae(
        REWARDS[2:3, mask],
        VALUES[2:3, mask],
        np.ones((1, mask.sum()), bool),
        gamma=0.9,
        lam=0.8,
    )
    np.testing.assert_allclose(
        with_holes.advantages[:, mask], deleted.advantages, rtol=1e-6
    )


def test_padding_on_either_side_changes_no_advantage():
    short = batched_gae(REWARDS, VALUES, MASKS, gamma=0.9, lam=0.8)
    pad = partial(np.pad, pad_width=((0, 0), (2, 3)))
    long = batched_gae(
        pad(REWARDS, constant_values=9.0),
        pad(VALUES, constant_values=9.0),
        pad(MASKS),
        gamma=0.9,
        lam=0.8,
    )
    np.testing.assert_allclose(long.advantages[:, 2:-3], short.advantages, rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(long.returns)[~pad(MASKS)], 0.0)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -1e30])
def test_masked_garbage_reaches_no_advantage(garbage):
    clean = batched_gae(REWARDS, VALUES, MASKS, gamma=0.9, lam=0.8)
    dirty = batched_gae(
        np.where(MASKS, REWARDS, garbage).astype(np.float32),
        np.where(MASKS, VALUES, garbage).astype(np.float32),
        MASKS,
        gamma=0.9,
        lam=0.8,
    )
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)


def test_fractional_rewards_survive_in_bfloat16_too():
    out = gae(
        rewards=jnp.array([0.0, 0.25], jnp.bfloat16),
        values=jnp.zeros(2, jnp.bfloat16),
        mask=jnp.ones(2, bool),
        gamma=1.0,
        lam=1.0,
    )
    assert out.advantages.dtype == jnp.float32
    np.testing.assert_array_equal(out.advantages, [0.25, 0.25])


def test_no_gradient_flows_through_advantages():
    def total(x):
        moments = update_moments(init_moments(), x, jnp.ones(x.shape, bool))
        one = jnp.array([True, True, True, False])
        return (
            sum(
                jnp.sum(a)
                for a in gae(rewards=x[0], values=x[1], mask=one, gamma=0.9, lam=0.8)
            )
            + jnp.sum(rloo_advantages(scores=x) ** 2)
            + jnp.sum(grpo(scores=x, epsilon=1e-4) ** 2)
            + jnp.sum(reference_baseline(scores=x[0], reference_scores=x[1]))
            + jnp.sum(normalise(x, moments) ** 2)
        )

    np.testing.assert_array_equal(jax.jit(jax.grad(total))(jnp.array(SCORES)), 0.0)


def test_reference_baseline_is_zero_at_the_reference():
    scores = jnp.array(SCORES)
    np.testing.assert_array_equal(
        reference_baseline(scores=scores, reference_scores=scores), 0.0
    )


def test_reference_baseline_subtracts_the_other_score():
    # 1.5 - 2 = -0.5 and -1 - (-4) = 3.
    scores, others = jnp.array([1.5, -1.0]), jnp.array([2.0, -4.0])
    got = reference_baseline(scores=scores, reference_scores=others)
    np.testing.assert_array_equal(got, [-0.5, 3.0])


def test_reference_baseline_removes_what_depends_on_the_prompt_alone():
    shift = jnp.array([100.0, -3.0, 0.5, 7.0])
    scores, others = jnp.array(SCORES[0]), jnp.array(SCORES[1])
    np.testing.assert_allclose(
        reference_baseline(scores=scores + shift, reference_scores=others + shift),
        reference_baseline(scores=scores, reference_scores=others),
        atol=1e-5,
    )


def test_rloo_equals_leaving_one_out():
    expected = np.zeros(SCORES.shape)
    for b in range(5):
        for k in range(4):
            expected[b, k] = SCORES[b, k] - np.delete(SCORES[b], k).mean()
    got = rloo_advantages(scores=jnp.array(SCORES))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_rloo_of_hand_written_numbers():
    # 1, 2, 6: 1 - 8/2 = -3, 2 - 7/2 = -1.5, 6 - 3/2 = 4.5. Two: +-(a - b).
    np.testing.assert_allclose(
        rloo_advantages(scores=jnp.array([[1.0, 2.0, 6.0]])), [[-3, -1.5, 4.5]]
    )
    np.testing.assert_allclose(
        rloo_advantages(scores=jnp.array([[1.0, 5.0]])), [[-4.0, 4.0]]
    )


def test_rloo_of_one_response_is_refused():
    with pytest.raises(ValueError, match="num_responses=1"):
        rloo_advantages(scores=jnp.zeros((3, 1)))


@pytest.mark.parametrize(
    "function", [rloo_advantages, partial(grpo, epsilon=1e-6), dr_grpo]
)
def test_group_advantages_have_mean_zero_and_ignore_shifts_and_order(function):
    got = np.asarray(function(scores=jnp.array(SCORES)))
    np.testing.assert_allclose(got.mean(axis=1), 0.0, atol=1e-6)
    shifted = function(scores=jnp.array(SCORES + 10.0))
    np.testing.assert_allclose(shifted, got, rtol=1e-4, atol=1e-5)
    reverse = function(scores=jnp.array(SCORES[::-1, ::-1]))
    np.testing.assert_allclose(reverse, got[::-1, ::-1], rtol=1e-5, atol=1e-6)


def test_grpo_has_standard_deviation_one_and_ignores_scale():
    got = np.asarray(grpo(scores=jnp.array(SCORES), epsilon=1e-8))
    np.testing.assert_allclose(got.std(axis=1), 1.0, rtol=1e-5)
    scaled = grpo(scores=jnp.array(100 * SCORES), epsilon=1e-8)
    np.testing.assert_allclose(scaled, got, rtol=1e-5, atol=1e-6)


def test_grpo_of_hand_written_numbers():
    # 1, 2, 6: mean 3, std sqrt(14/3) = 2.160247; with epsilon 0.5 divide by 2.660247.
    got = grpo(scores=jnp.array([[1.0, 2.0, 6.0]]), epsilon=0.5)
    np.testing.assert_allclose(got, [[-0.751810, -0.375905, 1.127715]], rtol=1e-5)


@pytest.mark.parametrize("value", [0.1, 1e4 / 3, 1e7 / 3])
def test_equal_scores_give_no_advantage_at_any_scale(value):
    scores = jnp.full((2, 3), value, jnp.float32)
    np.testing.assert_allclose(grpo(scores=scores, epsilon=1e-4), 0, atol=1e-4)
    np.testing.assert_allclose(rloo_advantages(scores=scores), 0.0, atol=1e-6)
    assert (np.asarray(grpo(scores=scores[:, :1], epsilon=1e-4)) == 0).all()


def test_equal_scores_give_no_advantage_with_an_epsilon_of_zero():
    scores = jnp.array([[2.0, 2.0, 2.0], [1.0, 1.0, 4.0]])
    got = grpo(scores=scores, epsilon=0.0)
    np.testing.assert_allclose(got[0], 0.0)
    np.testing.assert_allclose(got[1], np.array([-1, -1, 2]) / np.sqrt(2), rtol=1e-6)


def test_without_the_standard_deviation_grpo_is_rloo_up_to_a_factor():
    """(K - 1) / K, with K = 4."""
    got = dr_grpo(scores=jnp.array(SCORES))
    expected = 0.75 * rloo_advantages(scores=jnp.array(SCORES))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    # By hand: scores 1, 2, 6 with mean 3.
    got = dr_grpo(scores=jnp.array([[1.0, 2.0, 6.0]]))
    np.testing.assert_allclose(got, [[-2.0, -1.0, 3.0]], rtol=1e-6)


@pytest.mark.parametrize(
    ("scores", "differs"),
    [
        ([0.0, 0.0, 0.0], False),
        ([1.0, 1.0, 1.0], False),
        ([0.0, 0.0, 1.0], True),
        ([-2.0, -2.0, -2.00001], True),
        ([1e4, 1e4, 1e4 + 2**-10], False),  # the rounding of one score
        ([7.0], False),
        ([1.0, np.nan, 1.0], True),
    ],
)
def test_a_group_differs_where_two_scores_do(scores, differs):
    assert groups_differ(jnp.array([scores])).tolist() == [differs]


def slow_reinforce_pp(rewards, mask, gamma):
    """The discounted sum of the later rewards; then all tokens' mean and spread."""
    returns = slow_gae(rewards, np.zeros(rewards.shape), mask, gamma, 1.0)
    real = returns[mask]
    return np.where(mask, (returns - real.mean()) / real.std(), 0.0)


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_reinforce_pp_equals_the_slow_reference(gamma):
    got = reinforce_pp_advantages(
        rewards=jnp.array(REWARDS), mask=jnp.array(MASKS), gamma=gamma
    )
    expected = slow_reinforce_pp(REWARDS, MASKS, gamma)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_reinforce_pp_of_hand_written_numbers():
    # Rewards -1, 3 and 2, masked: returns 2, 3 and 2, mean 7/3, variance 2/9.
    got = reinforce_pp_advantages(
        rewards=jnp.array([[-1.0, 3.0], [2.0, 9.0]]),
        mask=jnp.array([[True, True], [True, False]]),
        gamma=1.0,
    )
    expected = np.array([[-1, 2], [-1, 0]]) / np.sqrt(2)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_reinforce_pp_is_whitened_gae_without_a_critic_at_lam_one():
    mask, rewards = jnp.array(MASKS), jnp.array(REWARDS)
    plain = batched_gae(rewards, jnp.zeros(MASKS.shape), mask, gamma=0.9, lam=1.0)
    got = reinforce_pp_advantages(rewards=rewards, mask=mask, gamma=0.9)
    expected = masked.whiten(plain.advantages, mask, shift_mean=True)
    np.testing.assert_array_equal(got, expected)


def test_reinforce_pp_ignores_padding_order_and_garbage():
    mask, order = jnp.array(MASKS), np.array([4, 2, 0, 5, 1, 3])
    expected = reinforce_pp_advantages(rewards=jnp.array(REWARDS), mask=mask, gamma=0.9)
    dirty = jnp.where(mask, jnp.array(REWARDS), jnp.nan)
    wide = ((0, 1), (2, 3))
    got = reinforce_pp_advantages(
        rewards=jnp.pad(dirty[order], wide), mask=jnp.pad(mask[order], wide), gamma=0.9
    )
    np.testing.assert_allclose(got[:6, 2:9], expected[order], atol=1e-5)


def test_running_moments_equal_those_of_all_the_data_at_once():
    x = RNG.normal(1000.0, 2.0, (6, 7)).astype(np.float32)
    moments = init_moments()
    for row, mask in zip(x, MASKS, strict=True):
        moments = update_moments(moments, jnp.array(row), jnp.array(mask))
    kept = x[MASKS].astype(np.float64)
    np.testing.assert_allclose(moments.count, len(kept))
    np.testing.assert_allclose(moments.mean, kept.mean(), rtol=1e-6)
    np.testing.assert_allclose(moments.m2, kept.var() * len(kept), rtol=1e-3)


def test_running_moments_of_hand_written_numbers():
    # 1, 3 then 8: mean 4, deviations 9 + 1 + 16 = 26, variance 26 / 3; (4 + 2.943920
    # - 4) / sqrt(26 / 3) = 1.
    moments = update_moments(init_moments(), jnp.array([1.0, 3.0]), jnp.ones(2, bool))
    moments = update_moments(moments, jnp.array([8.0]), jnp.ones(1, bool))
    np.testing.assert_allclose(moments, [3.0, 4.0, 26.0], rtol=1e-6)
    np.testing.assert_allclose(
        normalise(jnp.array([4.0, 6.943920]), moments), [0.0, 1.0], atol=1e-6
    )


def test_numbers_close_together_are_drawn_apart():
    x = jnp.array([2.0, 2.2])  # mean 2.1, std 0.1
    moments = update_moments(init_moments(), x, jnp.ones(2, bool))
    np.testing.assert_allclose(normalise(x, moments), [-1.0, 1.0], atol=1e-5)


@pytest.mark.parametrize("garbage", [np.nan, np.inf])
def test_masked_garbage_never_enters_the_running_moments(garbage):
    x = jnp.array([1.0, garbage, 3.0])
    moments = update_moments(init_moments(), x, jnp.array([True, False, True]))
    np.testing.assert_allclose(moments, [2.0, 2.0, 2.0])
    same = update_moments(moments, x, jnp.zeros(3, bool))
    np.testing.assert_allclose(same, moments)


@pytest.mark.parametrize("size", [1, 3, 7, 100, 1000])
@pytest.mark.parametrize("score", [0.3, -7.7, 1e4, 1e-5, 0.0])
def test_equal_scores_are_normalised_to_zero_in_batches_of_any_size(size, score):
    """Compiled, where the mean of equal numbers is rounded."""

    @jax.jit
    def seen(moments, x):
        return update_moments(moments, x, jnp.ones(x.shape, bool))

    x, moments = jnp.full(size, score, jnp.float32), init_moments()
    for _ in range(20):
        moments = seen(moments, x)
        limit = 1e-5 * max(abs(score), 1e-30)
        assert np.abs(normalise(x, moments)).max() <= limit


def test_the_rounding_of_a_running_mean_is_no_spread_and_a_small_spread_is_one():
    """Equal scores of 0.3 whose mean is one rounding off, as a compiler leaves it."""
    x = np.full(5, 0.3, np.float32)
    rounded = float(np.nextafter(x[0], np.float32(1)))
    m2 = 200 * (rounded - float(x[0])) ** 2
    moments = RunningMoments(*map(jnp.float32, (200.0, rounded, m2)))
    assert m2 > 0
    np.testing.assert_allclose(normalise(jnp.asarray(x), moments), 0.0, atol=1e-6)
    near = jnp.array([0.3 - 1e-4, 0.3 + 1e-4])
    moments = update_moments(init_moments(), near, jnp.ones(2, bool))
    np.testing.assert_allclose(normalise(near, moments), [-1.0, 1.0], rtol=1e-2)


def test_normalising_before_two_different_numbers_were_seen_only_shifts():
    x = jnp.array([5.0, 7.0])
    np.testing.assert_array_equal(normalise(x, init_moments()), x)
    one = update_moments(init_moments(), jnp.array([5.0]), jnp.ones(1, bool))
    np.testing.assert_array_equal(normalise(x, one), [0.0, 2.0])
