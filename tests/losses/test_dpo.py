from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.losses.dpo import (
    PairLogprobs,
    dpo_loss,
    ipo_loss,
    length_regularised_dpo_loss,
    robust_dpo_loss,
    simpo_loss,
)

RNG = np.random.default_rng(0)
NAMES = (
    "chosen_logprobs",
    "rejected_logprobs",
    "ref_chosen_logprobs",
    "ref_rejected_logprobs",
)
LOGPROBS = {name: RNG.normal(-20, 3, 6).astype(np.float32) for name in NAMES}
LENGTHS = {
    "chosen_lengths": np.array([9, 3, 12, 1, 5, 20]),
    "rejected_lengths": np.array([4, 7, 12, 2, 9, 1]),
}
AT_REFERENCE = {
    **LOGPROBS,
    "ref_chosen_logprobs": LOGPROBS["chosen_logprobs"],
    "ref_rejected_logprobs": LOGPROBS["rejected_logprobs"],
}


def log_sigmoid(x):
    return -np.log1p(np.exp(-x))


def slow_z(a):
    a = {name: x.astype(np.float64) for name, x in a.items()}
    return (a["chosen_logprobs"] - a["ref_chosen_logprobs"]) - (
        a["rejected_logprobs"] - a["ref_rejected_logprobs"]
    )


def slow_dpo(a):
    z = 0.2 * slow_z(a)
    return -0.9 * log_sigmoid(z) - 0.1 * log_sigmoid(-z)


def slow_robust(a):
    z = 0.2 * slow_z(a)
    return (-0.9 * log_sigmoid(z) + 0.1 * log_sigmoid(-z)) / 0.8


def slow_ipo(a):
    return (slow_z(a) - 1 / (2 * 0.2)) ** 2


def slow_length(a):
    longer = a["chosen_lengths"] - a["rejected_lengths"]
    return -log_sigmoid(0.2 * slow_z(a) + 0.05 * longer)


def slow_simpo(a):
    chosen = a["chosen_logprobs"].astype(np.float64) / a["chosen_lengths"]
    rejected = a["rejected_logprobs"].astype(np.float64) / a["rejected_lengths"]
    return -log_sigmoid(2.0 * (chosen - rejected) - 0.5)


dpo = partial(dpo_loss, beta=0.2, label_smoothing=0.0)
conservative = partial(dpo_loss, beta=0.2, label_smoothing=0.1)
robust = partial(robust_dpo_loss, beta=0.2, label_smoothing=0.1)
ipo = partial(ipo_loss, beta=0.2)
by_length = partial(length_regularised_dpo_loss, beta=0.2, alpha=0.05)
simpo = partial(simpo_loss, beta=2.0, gamma=0.5)

LOSSES = {
    "conservative": (conservative, slow_dpo, LOGPROBS),
    "robust": (robust, slow_robust, LOGPROBS),
    "ipo": (ipo, slow_ipo, LOGPROBS),
    "by_length": (by_length, slow_length, LOGPROBS | LENGTHS),
    "simpo": (
        simpo,
        slow_simpo,
        {name: LOGPROBS[name] for name in NAMES[:2]} | LENGTHS,
    ),
}


def call(loss, arguments):
    arrays = {name: jnp.array(x) for name, x in arguments.items()}
    if NAMES[2] not in arrays:  # without a reference
        return loss(**arrays)
    return loss(PairLogprobs(*(arrays.pop(name) for name in NAMES)), **arrays)


def gradients(loss, arguments):
    def total(logprobs):
        return jnp.sum(call(loss, arguments | logprobs).loss)

    floats = {name: jnp.array(x) for name, x in arguments.items() if x.dtype != int}
    return jax.jit(jax.grad(total))(floats)


@pytest.mark.parametrize("name", LOSSES)
def test_loss_equals_the_slow_reference(name):
    loss, slow, arguments = LOSSES[name]
    np.testing.assert_allclose(call(loss, arguments).loss, slow(arguments), rtol=1e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_equals_finite_differences(name):
    loss, slow, arguments = LOSSES[name]
    got = gradients(loss, arguments)
    eps = 1e-5
    for which in NAMES[:2]:
        up, down = dict(arguments), dict(arguments)
        up[which] = arguments[which].astype(np.float64) + eps
        down[which] = arguments[which].astype(np.float64) - eps
        rise = (slow(up) - slow(down)) / (2 * eps)
        np.testing.assert_allclose(got[which], rise, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_the_reference_gets_no_gradient(name):
    loss, _, arguments = LOSSES[name]
    got = gradients(loss, arguments)
    for which in NAMES[2:]:
        if which in got:
            np.testing.assert_array_equal(got[which], 0.0)


@pytest.mark.parametrize("name", LOSSES)
def test_each_pair_stands_alone(name):
    loss, _, arguments = LOSSES[name]
    out = call(loss, arguments)
    order = [5, 2, 0, 4, 1, 3]
    permuted = call(loss, {name: x[order] for name, x in arguments.items()})
    for x, y in zip(permuted, out, strict=True):
        np.testing.assert_allclose(x, y[jnp.array(order)], rtol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_loss_is_float32_whatever_comes_in(name):
    loss, _, arguments = LOSSES[name]
    half = {
        name: x if x.dtype == int else jnp.array(x, jnp.bfloat16)
        for name, x in arguments.items()
    }
    assert all(x.dtype == jnp.float32 for x in call(loss, half))


@pytest.mark.parametrize("name", ["conservative", "robust", "by_length", "simpo"])
def test_huge_log_ratios_stay_finite(name):
    loss, _, arguments = LOSSES[name]
    for sign in (1.0, -1.0):
        far = {name: x if x.dtype == int else 1e4 * x for name, x in arguments.items()}
        far["chosen_logprobs"] = sign * far["chosen_logprobs"]
        assert np.isfinite(call(loss, far).loss).all()
        assert all(np.isfinite(g).all() for g in gradients(loss, far).values())


@pytest.mark.parametrize("loss", [dpo, conservative, robust])
def test_loss_is_log_two_when_policy_equals_reference(loss):
    out = call(loss, AT_REFERENCE)
    np.testing.assert_allclose(out.loss, np.log(2), rtol=1e-6)
    np.testing.assert_array_equal(out.margin, 0.0)
    np.testing.assert_array_equal(out.accuracy, 0.0)  # no margin is not the right one


def test_gradient_at_the_reference_is_half_of_beta():
    # d/d chosen of -log sigmoid(beta z) = -beta sigmoid(-beta z) = -beta / 2 at z = 0.
    got = gradients(dpo, AT_REFERENCE)
    np.testing.assert_allclose(got["chosen_logprobs"], -0.1, rtol=1e-6)
    np.testing.assert_allclose(got["rejected_logprobs"], 0.1, rtol=1e-6)


def test_gradient_anywhere_is_the_closed_form_of_the_paper():
    got = gradients(dpo, LOGPROBS)
    expected = -0.2 / (1 + np.exp(0.2 * slow_z(LOGPROBS)))
    np.testing.assert_allclose(got["chosen_logprobs"], expected, rtol=1e-4)
    np.testing.assert_allclose(got["rejected_logprobs"], -expected, rtol=1e-4)


def test_dpo_of_hand_written_numbers():
    # log-ratios 2 and -1, beta 1/2: rewards 1 and -1/2, margin 3/2, and
    # -log sigmoid(3/2) = log(1 + exp(-3/2)) = log 1.223130 = 0.201413.
    pair = PairLogprobs(
        chosen=jnp.array([-3.0]),
        rejected=jnp.array([-5.0]),
        ref_chosen=jnp.array([-5.0]),
        ref_rejected=jnp.array([-4.0]),
    )
    out = dpo_loss(pair, beta=0.5, label_smoothing=0.0)
    np.testing.assert_allclose(
        out, [[0.201413], [1.0], [-0.5], [1.5], [1.0]], rtol=1e-5
    )


def test_exchanging_chosen_and_rejected_reverses_margin_and_accuracy():
    out = call(dpo, LOGPROBS)
    swapped = dict(zip(NAMES, [LOGPROBS[NAMES[i]] for i in (1, 0, 3, 2)], strict=True))
    other = call(dpo, swapped)
    np.testing.assert_allclose(other.margin, -out.margin, rtol=1e-6)
    np.testing.assert_allclose(other.accuracy, 1 - out.accuracy)
    # -log sigmoid(-x) - (-log sigmoid(x)) = x
    np.testing.assert_allclose(other.loss - out.loss, out.margin, rtol=1e-4, atol=1e-5)


def test_smoothing_a_half_prefers_neither_response():
    got = gradients(partial(dpo_loss, beta=0.2, label_smoothing=0.5), AT_REFERENCE)
    np.testing.assert_allclose(got["chosen_logprobs"], 0.0, atol=1e-7)


def test_robust_loss_is_unbiased_under_flipped_labels():
    # E over flips of the robust loss = the clean DPO loss.
    flipped = dict(zip(NAMES, [LOGPROBS[NAMES[i]] for i in (1, 0, 3, 2)], strict=True))
    mean = 0.9 * call(robust, LOGPROBS).loss + 0.1 * call(robust, flipped).loss
    np.testing.assert_allclose(mean, call(dpo, LOGPROBS).loss, rtol=1e-4)


def test_robust_and_conservative_without_smoothing_are_dpo():
    expected = call(dpo, LOGPROBS).loss
    got = call(partial(robust_dpo_loss, beta=0.2, label_smoothing=0.0), LOGPROBS).loss
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize("label_smoothing", [0.5, 0.9, -0.1])
def test_robust_loss_refuses_labels_that_are_no_better_than_chance(label_smoothing):
    with pytest.raises(ValueError, match=f"label_smoothing={label_smoothing}"):
        call(
            partial(robust_dpo_loss, beta=0.2, label_smoothing=label_smoothing),
            LOGPROBS,
        )


def test_ipo_at_the_reference_is_the_square_of_its_target():
    # (0 - 1 / 0.4)^2 = 6.25, slope 2 (0 - 2.5) = -5.
    np.testing.assert_allclose(call(ipo, AT_REFERENCE).loss, 6.25, rtol=1e-6)
    got = gradients(ipo, AT_REFERENCE)
    np.testing.assert_allclose(got["chosen_logprobs"], -5.0, rtol=1e-6)


def test_ipo_is_least_where_the_log_ratio_is_its_target_and_pulls_back_beyond():
    def shifted(by):
        return AT_REFERENCE | {
            "ref_chosen_logprobs": AT_REFERENCE["chosen_logprobs"] - np.float32(by)
        }

    np.testing.assert_allclose(call(ipo, shifted(2.5)).loss, 0.0, atol=1e-9)
    assert (gradients(ipo, shifted(4.0))["chosen_logprobs"] > 0).all()
    assert (gradients(ipo, shifted(1.0))["chosen_logprobs"] < 0).all()


def test_length_term_is_dpo_at_equal_lengths_or_alpha_zero():
    expected = call(dpo, LOGPROBS).loss
    equal = {name: np.full(6, 7) for name in LENGTHS}
    np.testing.assert_allclose(
        call(by_length, LOGPROBS | equal).loss, expected, rtol=1e-6
    )
    without = partial(length_regularised_dpo_loss, beta=0.2, alpha=0.0)
    np.testing.assert_allclose(
        call(without, LOGPROBS | LENGTHS).loss, expected, rtol=1e-6
    )


def test_length_term_learns_less_from_a_longer_chosen_response():
    at_reference = AT_REFERENCE | {
        "chosen_lengths": np.array([10, 5, 1, 5, 5, 5]),
        "rejected_lengths": np.array([1, 5, 10, 5, 5, 5]),
    }
    pull = -gradients(by_length, at_reference)["chosen_logprobs"]
    assert pull[0] < pull[1] < pull[2]


def test_simpo_of_hand_written_numbers():
    # Per token -1/2 and -1, beta 2: rewards -1 and -2, margin 1, less gamma 1/2: 1/2;
    # -log sigmoid(1/2) = 0.474077.
    out = simpo_loss(
        chosen_logprobs=jnp.array([-4.0]),
        rejected_logprobs=jnp.array([-2.0]),
        chosen_lengths=jnp.array([8]),
        rejected_lengths=jnp.array([2]),
        beta=2.0,
        gamma=0.5,
    )
    np.testing.assert_allclose(
        out, [[0.474077], [-1.0], [-2.0], [1.0], [1.0]], rtol=1e-5
    )


def test_simpo_ignores_repetition_of_a_response():
    twice = {name: 2 * x for name, x in LOSSES["simpo"][2].items()}
    np.testing.assert_allclose(
        call(simpo, twice).loss, call(simpo, LOSSES["simpo"][2]).loss, rtol=1e-6
    )


def test_simpo_of_an_empty_response_is_finite():
    empty = LOSSES["simpo"][2] | {"rejected_lengths": np.zeros(6, int)}
    empty["rejected_logprobs"] = np.zeros(6, np.float32)
    assert np.isfinite(call(simpo, empty).loss).all()
