from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.losses.orpo import orpo_loss

RNG = np.random.default_rng(0)
LENGTHS = {
    "chosen_lengths": np.array([9, 3, 12, 1, 5, 20]),
    "rejected_lengths": np.array([4, 7, 12, 2, 9, 1]),
}
PAIR = {
    "chosen_logprobs": -RNG.uniform(0.5, 20, 6).astype(np.float32),
    "rejected_logprobs": -RNG.uniform(0.5, 20, 6).astype(np.float32),
    **LENGTHS,
}
LOGPROBS = ("chosen_logprobs", "rejected_logprobs")
orpo = partial(orpo_loss, beta=0.3)


def call(loss, arguments):
    return loss(**{name: jnp.array(x) for name, x in arguments.items()})


def gradients(loss, arguments):
    def total(logprobs):
        return call(loss, arguments | logprobs).loss.sum()

    return jax.grad(total)({name: jnp.array(arguments[name]) for name in LOGPROBS})


def slow_orpo(a):
    chosen = np.float64(a["chosen_logprobs"]) / a["chosen_lengths"]
    rejected = np.float64(a["rejected_logprobs"]) / a["rejected_lengths"]
    odds = [np.exp(x) / (1 - np.exp(x)) for x in (chosen, rejected)]
    ratio = np.log(odds[0] / odds[1])
    return -chosen + 0.3 * np.log(1 + np.exp(-ratio))


def test_loss_equals_the_slow_reference():
    np.testing.assert_allclose(call(orpo, PAIR).loss, slow_orpo(PAIR), rtol=1e-5)


def test_gradient_equals_finite_differences():
    got = gradients(orpo, PAIR)
    for which in LOGPROBS:
        x = PAIR[which].astype(np.float64)
        up, down = (slow_orpo(PAIR | {which: x + e}) for e in (1e-5, -1e-5))
        np.testing.assert_allclose(got[which], (up - down) / 2e-5, rtol=1e-3, atol=1e-6)


def test_orpo_of_hand_written_numbers():
    # Per token 1/2 and 1/4: odds 1 and 1/3, ratio 3, -log sigmoid(log 3) =
    # log(1 + 1/3) = 0.287682; -log 1/2 = 0.693147; beta 1/2: 0.836988.
    out = orpo_loss(
        chosen_logprobs=4 * jnp.log(jnp.array([0.5])),
        rejected_logprobs=2 * jnp.log(jnp.array([0.25])),
        chosen_lengths=jnp.array([4]),
        rejected_lengths=jnp.array([2]),
        beta=0.5,
    )
    expected = [[0.836988], [-0.346574], [-0.693147], [0.346574], [1.0]]
    np.testing.assert_allclose(out, expected, rtol=1e-5)


def test_with_a_beta_of_zero_it_is_the_sft_loss_of_the_chosen_response():
    got = gradients(partial(orpo_loss, beta=0.0), PAIR)
    np.testing.assert_allclose(
        got["chosen_logprobs"], -1 / LENGTHS["chosen_lengths"], rtol=1e-6
    )
    np.testing.assert_array_equal(got["rejected_logprobs"], 0.0)


def test_of_equal_responses_the_odds_term_is_log_two():
    equal = PAIR | {
        "rejected_logprobs": PAIR["chosen_logprobs"],
        "rejected_lengths": PAIR["chosen_lengths"],
    }
    odds = call(orpo, equal).loss + PAIR["chosen_logprobs"] / PAIR["chosen_lengths"]
    np.testing.assert_allclose(odds, 0.3 * np.log(2), rtol=1e-4)
    got = gradients(orpo, equal)
    assert (got["chosen_logprobs"] < 0).all()
    assert (got["rejected_logprobs"] > 0).all()


def test_unlikely_responses_have_the_odds_of_their_probabilities():
    """1 - p is then 1: the odds term compares the log-probabilities per token."""
    far = PAIR | {
        name: PAIR[name] - 30 * PAIR[f"{name[:-9]}_lengths"] for name in LOGPROBS
    }
    chosen = far["chosen_logprobs"] / far["chosen_lengths"]
    rejected = far["rejected_logprobs"] / far["rejected_lengths"]
    expected = -chosen + 0.3 * np.log1p(np.exp(rejected - chosen))
    np.testing.assert_allclose(call(orpo, far).loss, expected, rtol=1e-5)


@pytest.mark.parametrize("logprob", [0.0, -1e-9, -1e-4, -1e4])
def test_certain_impossible_and_empty_responses_stay_finite(logprob):
    edge = PAIR | {"chosen_logprobs": np.full(6, logprob, np.float32)}
    empty = edge | {
        "rejected_logprobs": np.zeros(6, np.float32),
        "rejected_lengths": np.zeros(6, int),
    }
    for arguments in (edge, empty):
        assert np.isfinite(call(orpo, arguments).loss).all()
        assert all(np.isfinite(x).all() for x in gradients(orpo, arguments).values())


def test_repetition_and_order_change_nothing_and_the_result_is_float32():
    out = call(orpo, PAIR)
    twice = {name: 2 * x for name, x in PAIR.items()}
    np.testing.assert_allclose(call(orpo, twice).loss, out.loss, rtol=1e-6)
    order = np.array([5, 2, 0, 4, 1, 3])
    permuted = call(orpo, {name: x[order] for name, x in PAIR.items()})
    np.testing.assert_allclose(permuted.loss, out.loss[order], rtol=1e-6)
    half = PAIR | {name: jnp.array(PAIR[name], jnp.bfloat16) for name in LOGPROBS}
    assert all(x.dtype == jnp.float32 for x in call(orpo, half))
