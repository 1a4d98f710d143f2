import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.losses.kl import (
    clip_scores,
    k1,
    k3,
    missing_end_penalty,
    penalised_rewards,
    update_kl_coef,
)

RNG = np.random.default_rng(0)
MASK = np.array(
    [[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=bool
)
LOGPROBS = RNG.normal(-2.0, 1.0, MASK.shape).astype(np.float32)
REF_LOGPROBS = RNG.normal(-2.0, 1.0, MASK.shape).astype(np.float32)
SCORES = RNG.normal(size=5).astype(np.float32)


def rewards_of(logprobs, ref_logprobs, mask, scores=SCORES, kl_coef=0.3):
    return penalised_rewards(
        scores=jnp.array(scores),
        logprobs=jnp.array(logprobs, jnp.float32),
        ref_logprobs=jnp.array(ref_logprobs, jnp.float32),
        mask=jnp.array(mask),
        kl_coef=kl_coef,
    )


def slow_rewards(logprobs, ref_logprobs, mask, scores, kl_coef):
    out = np.zeros(mask.shape)
    for b in range(len(mask)):
        real = np.flatnonzero(mask[b])
        for r in real:
            out[b, r] = -kl_coef * (float(logprobs[b, r]) - float(ref_logprobs[b, r]))
        if len(real):
            out[b, real[-1]] += scores[b]
    return out


def test_estimators_are_zero_at_equality():
    for estimator in (k1, k3):
        got = estimator(jnp.array(LOGPROBS), jnp.array(LOGPROBS))
        np.testing.assert_array_equal(got, 0.0)


def test_estimators_of_hand_written_numbers():
    # pi = 1/2, pi_ref = 1/4: log ratio log 2 = 0.693147; s = 1/2 and
    # 1/2 - 1 + 0.693147 = 0.193147.
    logprobs, ref = jnp.log(jnp.array([0.5])), jnp.log(jnp.array([0.25]))
    np.testing.assert_allclose(k1(logprobs, ref), [0.693147], rtol=1e-5)
    np.testing.assert_allclose(k3(logprobs, ref), [0.193147], rtol=1e-5)


def test_k1_and_k3_average_to_the_kl_under_the_policy():
    policy, reference = RNG.dirichlet(np.ones(6)), RNG.dirichlet(np.ones(6))
    kl = np.sum(policy * np.log(policy / reference))
    for estimator in (k1, k3):
        each = estimator(jnp.log(jnp.array(policy)), jnp.log(jnp.array(reference)))
        np.testing.assert_allclose(np.sum(policy * each), kl, rtol=1e-5)


def test_k3_is_never_negative():
    each = k3(jnp.array(LOGPROBS), jnp.array(REF_LOGPROBS))
    assert (np.asarray(each) >= 0).all()


def test_gradient_of_k3_equals_finite_differences():
    def slow(x, ref):
        d = x - ref
        return np.sum(np.exp(-d) - 1 + d)

    x, ref = LOGPROBS.astype(np.float64), REF_LOGPROBS.astype(np.float64)
    gradient = jax.grad(lambda x: jnp.sum(k3(x, jnp.array(REF_LOGPROBS))))(
        jnp.array(LOGPROBS)
    )
    way, eps = RNG.normal(size=x.shape), 1e-6
    rise = (slow(x + eps * way, ref) - slow(x - eps * way, ref)) / (2 * eps)
    np.testing.assert_allclose(np.sum(gradient * way), rise, rtol=1e-4)


def test_rewards_equal_the_slow_reference():
    np.testing.assert_allclose(
        rewards_of(LOGPROBS, REF_LOGPROBS, MASK),
        slow_rewards(LOGPROBS, REF_LOGPROBS, MASK, SCORES, 0.3),
        rtol=1e-5,
        atol=1e-6,
    )


def test_rewards_of_hand_written_numbers():
    # kl_coef 1/2: the first token pays (-1 - -2) / 2, the second gains (-3 - -1) / -2
    # and carries the score 0.25, the third is padding.
    got = rewards_of(
        [[-1.0, -3.0, -9.0]],
        [[-2.0, -1.0, -1.0]],
        [[True, True, False]],
        np.array([0.25], np.float32),
        0.5,
    )
    np.testing.assert_allclose(got, [[-0.5, 1.25, 0.0]])


def test_every_row_gets_its_own_score():
    """Indexing with one position for each row once wrote every score in every row."""
    got = rewards_of(LOGPROBS, LOGPROBS, MASK)
    last = [3, 1, 2, 0]
    np.testing.assert_array_equal([got[b, r] for b, r in enumerate(last)], SCORES[:4])
    assert np.count_nonzero(got) == 4


def test_rewards_add_up_to_the_score_minus_the_price_of_the_kl():
    got = np.asarray(rewards_of(LOGPROBS, REF_LOGPROBS, MASK))[:4].sum(axis=1)
    kl = np.where(MASK, LOGPROBS - REF_LOGPROBS, 0).sum(axis=1)[:4]
    np.testing.assert_allclose(got, SCORES[:4] - 0.3 * kl, rtol=1e-5, atol=1e-6)


def test_padding_on_either_side_changes_no_reward():
    short = rewards_of(LOGPROBS, REF_LOGPROBS, MASK)
    pad = ((0, 0), (2, 3))
    long = rewards_of(
        np.pad(LOGPROBS, pad), np.pad(REF_LOGPROBS, pad), np.pad(MASK, pad)
    )
    np.testing.assert_array_equal(long[:, 2:-3], short)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e30])
def test_masked_garbage_reaches_no_reward(garbage):
    scores = SCORES.copy()
    scores[4] = garbage  # the score of the row without tokens
    got = rewards_of(
        np.where(MASK, LOGPROBS, garbage),
        np.where(MASK, REF_LOGPROBS, garbage),
        MASK,
        scores,
    )
    np.testing.assert_array_equal(got, rewards_of(LOGPROBS, REF_LOGPROBS, MASK))
    np.testing.assert_array_equal(got[4], 0.0)


def test_no_gradient_flows_through_rewards():
    gradient = jax.grad(
        lambda x: jnp.sum(
            penalised_rewards(
                scores=jnp.array(SCORES),
                logprobs=x,
                ref_logprobs=jnp.array(REF_LOGPROBS),
                mask=jnp.array(MASK),
                kl_coef=0.3,
            )
        )
    )(jnp.array(LOGPROBS))
    np.testing.assert_array_equal(gradient, 0.0)


def test_rewards_are_float32_whatever_comes_in():
    got = penalised_rewards(
        scores=jnp.array([0.25], jnp.bfloat16),
        logprobs=jnp.zeros((1, 2), jnp.bfloat16),
        ref_logprobs=jnp.zeros((1, 2), jnp.bfloat16),
        mask=jnp.ones((1, 2), bool),
        kl_coef=0.1,
    )
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, [[0.0, 0.25]])


@pytest.mark.parametrize(
    "kl,expected",
    [
        (6.0, 0.1),  # on target
        (6.6, 0.1 * (1 + 0.1 * 256 / 10000)),  # 10 % above
        (60.0, 0.1 * (1 + 0.2 * 256 / 10000)),  # error clipped at 20 %
        (0.0, 0.1 * (1 - 0.2 * 256 / 10000)),
    ],
)
def test_kl_coefficient_follows_the_distance_from_the_target(kl, expected):
    got = update_kl_coef(
        kl_coef=0.1, kl=kl, target=6.0, horizon=10000.0, batch_size=256
    )
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_kl_coefficient_is_fixed_at_an_infinite_horizon():
    got = update_kl_coef(
        kl_coef=0.1, kl=60.0, target=6.0, horizon=float("inf"), batch_size=256
    )
    np.testing.assert_allclose(got, 0.1)


def test_kl_coefficient_steers_a_simple_system_to_the_target():
    """The KL of a toy policy is 1 / coefficient; the controller must find 1 / 6."""
    step = jax.jit(
        lambda c: update_kl_coef(
            kl_coef=c, kl=1.0 / c, target=6.0, horizon=1000.0, batch_size=100
        )
    )
    kl_coef = jnp.float32(1.0)
    for _ in range(400):
        kl_coef = step(kl_coef)
    np.testing.assert_allclose(kl_coef, 1 / 6, rtol=1e-3)


def test_a_response_that_never_ends_pays_the_penalty():
    got = missing_end_penalty(
        scores=jnp.array([1.0, 1.0]), ended=jnp.array([True, False]), penalty=3.0
    )
    np.testing.assert_array_equal(got, [1.0, -2.0])


def test_scores_are_clipped_on_both_sides():
    scores = jnp.array([-7.0, -1.5, 0.0, 7.0])
    np.testing.assert_array_equal(clip_scores(scores, 5.0), [-5.0, -1.5, 0.0, 5.0])
    np.testing.assert_array_equal(clip_scores(scores, float("inf")), scores)
