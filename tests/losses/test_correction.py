import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.losses.correction import LEVELS, sampler_error, sampler_weights

RNG = np.random.default_rng(0)
MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]], bool)
TRAINER = RNG.normal(-2.0, 0.5, MASK.shape).astype(np.float32)
SAMPLER = RNG.normal(-2.2, 0.5, MASK.shape).astype(np.float32)
CAP = 1.25


def weights(trainer, sampler, mask=MASK, level="token", cap=CAP):
    return sampler_weights(
        logprobs=jnp.array(trainer),
        sampler_logprobs=jnp.array(sampler),
        mask=jnp.array(mask),
        level=level,
        cap=cap,
    )


def error(trainer, sampler, mask=MASK):
    return sampler_error(
        logprobs=jnp.array(trainer),
        sampler_logprobs=jnp.array(sampler),
        mask=jnp.array(mask),
    )


def slow_weights(level):
    out = np.zeros(MASK.shape)
    for i, j in zip(*np.nonzero(MASK), strict=True):
        gap = np.float64(TRAINER[i]) - np.float64(SAMPLER[i])
        total = gap[j] if level == "token" else gap[MASK[i]].sum()
        out[i, j] = min(np.exp(total), CAP)
    return out


@pytest.mark.parametrize("level", LEVELS)
def test_weights_equal_the_slow_reference(level):
    expected = slow_weights(level)
    np.testing.assert_allclose(
        weights(TRAINER, SAMPLER, level=level), expected, rtol=1e-5
    )
    assert (expected == CAP).any()
    assert ((expected > 0) & (expected < 1)).any()


def test_weights_of_hand_written_numbers():
    # Gaps log 2, log 1/2 and, in the second row, log 4: cap 3.
    trainer = np.log(np.array([[0.4, 0.1], [0.8, 0.5]], np.float32))
    sampler = np.log(np.array([[0.2, 0.2], [0.2, 0.1]], np.float32))
    mask = np.array([[1, 1], [1, 0]], bool)
    found = weights(trainer, sampler, mask, "token", 3.0)
    np.testing.assert_allclose(found, [[2.0, 0.5], [3.0, 0.0]], rtol=1e-6)
    found = weights(trainer, sampler, mask, "response", 3.0)
    np.testing.assert_allclose(found, [[1.0, 1.0], [3.0, 0.0]], rtol=1e-6)
    # The mean |gap|: log 2, and log 4.
    np.testing.assert_allclose(
        error(trainer, sampler, mask), np.log([2.0, 4.0]), rtol=1e-6
    )


@pytest.mark.parametrize("level", LEVELS)
def test_a_sampler_that_is_the_trainer_has_weight_one_and_no_error(level):
    found = weights(TRAINER, TRAINER, level=level)
    np.testing.assert_array_equal(found, MASK.astype(np.float32))
    np.testing.assert_array_equal(error(TRAINER, TRAINER), 0.0)


def test_of_one_token_both_weights_are_equal():
    """Reversing the roles inverts a weight that no cap holds."""
    arguments = [x.reshape(-1, 1) for x in (TRAINER, SAMPLER, MASK)]
    by_token = weights(*arguments, level="token", cap=np.inf)
    np.testing.assert_array_equal(
        by_token, weights(*arguments, level="response", cap=np.inf)
    )
    trainer, sampler, mask = arguments
    inverse = weights(sampler, trainer, mask, "token", np.inf)
    np.testing.assert_allclose((by_token * inverse)[mask], 1.0, rtol=1e-6)


@pytest.mark.parametrize("level", LEVELS)
def test_weights_make_the_samplers_draws_an_average_over_the_trainer(level):
    """E_sampler[weight f] = E_trainer[f], exactly, over all responses of 2 tokens."""
    sampler, trainer = np.array([0.2, 0.5, 0.3]), np.array([0.4, 0.4, 0.2])
    f = RNG.normal(size=(3, 3))
    pairs = [(a, b) for a in range(3) for b in range(3)]
    logs = [np.log([[p[a], p[b]] for a, b in pairs]) for p in (trainer, sampler)]
    w = np.asarray(weights(*logs, np.ones((9, 2), bool), level, np.inf))
    if level == "token":
        w = w.prod(-1, keepdims=True)
    drawn = sum(
        sampler[a] * sampler[b] * w[i, 0] * f[a, b] for i, (a, b) in enumerate(pairs)
    )
    expected = sum(trainer[a] * trainer[b] * f[a, b] for a, b in pairs)
    assert drawn == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("level", LEVELS)
def test_padding_order_and_garbage_change_nothing(level):
    dirty = np.where(MASK, SAMPLER, np.inf)[::-1]
    wide = ((0, 0), (0, 2))
    arguments = (np.pad(TRAINER[::-1], wide), np.pad(dirty, wide))
    mask = np.pad(MASK[::-1], wide)
    found = weights(*arguments, mask, level)[:, :4]
    np.testing.assert_allclose(
        found, weights(TRAINER, SAMPLER, level=level)[::-1], rtol=1e-6
    )
    np.testing.assert_allclose(
        error(*arguments, mask), error(TRAINER, SAMPLER)[::-1], rtol=1e-6
    )


@pytest.mark.parametrize("level", LEVELS)
def test_a_gap_beyond_all_numbers_is_capped_and_has_no_gradient(level):
    far = np.where(MASK, 200.0, 0.0).astype(np.float32)
    np.testing.assert_array_equal(weights(far, -far, level=level), CAP * MASK)
    np.testing.assert_array_equal(weights(-far, far, level=level), 0.0)
    gradient = jax.grad(lambda x: weights(x, -far, level=level).sum())(jnp.array(far))
    np.testing.assert_array_equal(gradient, 0.0)


def test_an_unknown_level_is_refused():
    with pytest.raises(ValueError, match="level='batch' must be one of token"):
        weights(TRAINER, SAMPLER, level="batch")
