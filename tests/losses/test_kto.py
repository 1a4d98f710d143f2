from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.losses.dpo import PairLogprobs, dpo_loss
from rlhf_jax.losses.kto import kto_kl, kto_loss

RNG = np.random.default_rng(0)
PAIR = PairLogprobs(*jnp.array(RNG.normal(-20, 3, (4, 6)), jnp.float32))
AT_REFERENCE = PairLogprobs(PAIR.chosen, PAIR.rejected, PAIR.chosen, PAIR.rejected)
kto = partial(kto_loss, kl=1.5, beta=0.2, desirable_weight=1.2, undesirable_weight=0.7)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def slow_kto(pair):
    chosen, rejected, ref_chosen, ref_rejected = (np.float64(x) for x in pair)
    desirable = 1.2 * (1 - sigmoid(0.2 * (chosen - ref_chosen - 1.5)))
    undesirable = 0.7 * (1 - sigmoid(0.2 * (1.5 - (rejected - ref_rejected))))
    return (desirable + undesirable) / 2


def gradients(loss, pair):
    return jax.grad(lambda pair: loss(pair).loss.sum())(
        PairLogprobs(*map(jnp.array, pair))
    )


def test_loss_equals_the_slow_reference():
    np.testing.assert_allclose(kto(PAIR).loss, slow_kto(PAIR), rtol=1e-5)


def test_gradient_equals_finite_differences_and_the_reference_gets_none():
    got = gradients(kto, PAIR)
    for field in ("chosen", "rejected"):
        x = np.float64(getattr(PAIR, field))
        up, down = (PAIR._replace(**{field: x + e}) for e in (1e-5, -1e-5))
        rise = (slow_kto(up) - slow_kto(down)) / 2e-5
        np.testing.assert_allclose(getattr(got, field), rise, rtol=1e-3, atol=1e-7)
    np.testing.assert_array_equal(got.ref_chosen, 0.0)
    np.testing.assert_array_equal(got.ref_rejected, 0.0)


def test_kto_of_hand_written_numbers():
    # Rewards beta (2) = 1 and beta (-1) = -1/2, reference point beta (1) = 1/2:
    # sigmoid(1/2 - 1) = 0.377541, sigmoid(-1/2 - 1/2) = 0.268941; their mean 0.323241.
    pair = PairLogprobs(*(jnp.array([x]) for x in (-3.0, -5.0, -5.0, -4.0)))
    out = kto_loss(pair, kl=1.0, beta=0.5, desirable_weight=1.0, undesirable_weight=1.0)
    np.testing.assert_allclose(
        out, [[0.323241], [1.0], [-0.5], [1.5], [1.0]], rtol=1e-5
    )


def test_at_the_reference_the_gradient_is_a_quarter_of_dpos():
    """sigmoid has slope 1/4 at 0, -log sigmoid has 1/2, and a pair is the mean of
    two examples."""
    plain = partial(kto, kl=0.0, desirable_weight=1.0, undesirable_weight=1.0)
    np.testing.assert_allclose(plain(AT_REFERENCE).loss, 0.5, rtol=1e-6)
    got = gradients(plain, AT_REFERENCE)
    dpo = gradients(partial(dpo_loss, beta=0.2, label_smoothing=0.0), AT_REFERENCE)
    np.testing.assert_allclose(got.chosen, dpo.chosen / 4, rtol=1e-5)
    np.testing.assert_allclose(got.rejected, dpo.rejected / 4, rtol=1e-5)


def test_the_two_responses_of_a_pair_do_not_see_each_other():
    got = gradients(kto, PAIR)
    moved = PAIR._replace(rejected=PAIR.rejected + 5)
    np.testing.assert_array_equal(gradients(kto, moved).chosen, got.chosen)
    assert (gradients(kto, moved).rejected != got.rejected).all()


def test_the_loss_is_bounded_and_finite_far_away():
    for sign in (1.0, -1.0):
        far = PAIR._replace(chosen=sign * 1e4 * PAIR.chosen)
        assert ((kto(far).loss >= 0) & (kto(far).loss <= (1.2 + 0.7) / 2)).all()
        assert np.isfinite(gradients(kto, far).chosen).all()


def test_each_pair_stands_alone_and_the_result_is_float32():
    order = np.array([5, 2, 0, 4, 1, 3])
    permuted = kto(PairLogprobs(*(x[order] for x in PAIR)))
    np.testing.assert_allclose(permuted.loss, kto(PAIR).loss[order], rtol=1e-6)
    half = PairLogprobs(*(jnp.array(x, jnp.bfloat16) for x in PAIR))
    assert all(x.dtype == jnp.float32 for x in kto(half))


def kl_of(gaps, mask):
    gaps = jnp.array(gaps)
    return kto_kl(
        logprobs=gaps - 3, ref_logprobs=jnp.full(gaps.shape, -3.0), mask=jnp.array(mask)
    )


@pytest.mark.parametrize(
    ("gaps", "mask", "expected"),
    [
        ([[2.0, 1.0], [-1.0, 4.0]], [[True, True], [True, True]], 1.5),
        ([[2.0, 1.0], [np.nan, np.inf]], [[True, True], [False, False]], 1.5),
        ([[-2.0, 1.0]], [[True, True]], 0.0),  # never negative
        ([[5.0, 5.0]], [[False, False]], 0.0),
    ],
)
def test_the_reference_point_is_the_mean_of_what_counts(gaps, mask, expected):
    assert float(kl_of(gaps, mask)) == pytest.approx(expected)


def test_the_reference_point_has_no_gradient():
    gradient = jax.grad(lambda x: kl_of(x, [True, True]))(jnp.array([1.0, 2.0]))
    np.testing.assert_array_equal(gradient, 0.0)
    slope = jax.grad(lambda kl: kto(PAIR, kl=kl).loss.sum())(1.5)
    assert slope == 0
