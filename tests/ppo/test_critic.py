"""The critic starts on the line whose own errors its values cannot predict."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.generation.rollout import rollout
from rlhf_jax.losses.advantages import gae
from rlhf_jax.losses.ppo import explained_variance
from rlhf_jax.ppo.critic import fit_critic, fit_line
from rlhf_jax.ppo.draws import Rows
from rlhf_jax.ppo.experience import make_experience
from rlhf_jax.ppo.forward import run_models
from tests.algorithms.ppo_parts import (
    ROWS,
    SAMPLING,
    changed,
    make_prompts,
    make_state,
)


def line(values, returns, mask, *, gamma=1.0, lam=1.0):
    values, returns = (jnp.asarray(x, jnp.float32) for x in (values, returns))
    mask = jnp.asarray(mask)
    return fit_line(values=values, returns=returns, mask=mask, gamma=gamma, lam=lam)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_line_is_that_of_least_squares_which_does_not_fall(sign):
    """At lambda 1 the returns do not depend on the values."""
    rng = np.random.default_rng(0)
    values, noise = rng.normal(2.0, 3.0, (2, 4, 5))
    returns = sign * 0.4 * values + noise - 7.0
    mask = rng.random((4, 5)) < 0.6
    values[~mask], returns[~mask] = np.inf, np.nan
    found = line(values, returns, mask)
    expected = np.polyfit(values[mask], returns[mask], 1)
    assert np.sign(expected[0]) == sign
    if sign < 0:
        expected = 0.0, returns[mask].mean()
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    flat = line(np.ones((4, 5)), np.full((4, 5), 3.0), mask)
    np.testing.assert_allclose(flat, (0.0, 3.0), rtol=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 0.0)])
def test_errors_of_the_line_are_uncorrelated_with_its_values(gamma, lam, sign):
    """Also where the returns hold these values themselves. The values know half of the
    score, and are noisy as a model's."""
    rng = np.random.default_rng(0)
    mask = jnp.asarray(np.arange(30) < rng.integers(5, 31, (400, 1)))
    score = rng.normal(size=(400, 1))
    rewards = np.zeros((400, 30), np.float32)
    rewards[np.arange(400), np.asarray(mask.sum(1)) - 1] = score[:, 0]
    values = 3.0 + sign * 0.5 * score + rng.normal(0.0, 2.0, (400, 30))
    values = jnp.asarray(values, jnp.float32)

    def errors_of(values):
        """The errors, and the explained variance."""
        estimate = functools.partial(gae, gamma=gamma, lam=lam)
        made = jax.vmap(estimate)(
            rewards=jnp.asarray(rewards), values=values, mask=mask
        )
        explained = explained_variance(values=values, returns=made.returns, mask=mask)
        return made.advantages[mask], explained, made.returns

    first = errors_of(values)[-1]
    scale, shift = line(values, first, mask, gamma=gamma, lam=lam)
    errors, explained, _ = errors_of(scale * values + shift)
    assert abs(errors.mean()) < 1e-5
    if sign > 0:
        assert 0 < scale < 1 and explained > 0
        assert abs((errors * values[mask]).mean()) < 1e-5
    else:
        assert scale == 0 and explained == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("lam", [1.0, 0.95])
def test_the_fitted_critic_has_these_values_and_explains_the_returns(lam):
    state, frozen, _ = make_state()
    # The parts of other tests stay as they are.
    value = jax.tree.map(jnp.copy, state.value.model)
    value.offset[...] = jnp.float32(0.7)
    state = dataclasses.replace(
        state, value=dataclasses.replace(state.value, model=value)
    )
    hyper = changed(lam=lam)
    models_step = jax.jit(functools.partial(run_models, hyper=hyper))
    experience_step = jax.jit(functools.partial(make_experience, hyper=hyper))
    rolled = rollout(state.policy.model, make_prompts(), jax.random.key(0), SAMPLING)
    outputs = models_step(state, frozen, rolled)
    baseline = np.linspace(-1.0, 1.0, ROWS, dtype=np.float32)
    rows = Rows(rolled, outputs, outputs.scores, baseline)
    first, _, before = experience_step(state, *rows)
    assert before["val/explained_variance"] < 0

    fitted = fit_critic(value, rows, first, gamma=hyper.gamma, lam=lam)
    again = models_step(state, frozen, rolled)
    mask = np.asarray(rolled.response_mask)
    np.testing.assert_allclose(fitted.outputs.values, again.values, atol=1e-5)
    assert np.abs(np.asarray(again.values - outputs.values)[mask]).max() > 0.1
    np.testing.assert_array_equal(again.scores, outputs.scores)
    second, _, after = experience_step(state, *fitted)
    if lam == 1.0:  # the returns do not depend on the values
        np.testing.assert_allclose(second.returns, first.returns, atol=1e-5)
    assert after["val/explained_variance"] >= -1e-6
    residual = np.asarray(second.returns - second.old_values)[mask]
    assert abs(residual.mean()) < 1e-5


def test_returns_that_are_not_finite_leave_the_critic_as_it_is():
    state, frozen, _ = make_state()
    value = jax.tree.map(jnp.copy, state.value.model)
    hyper = changed()
    rolled = rollout(state.policy.model, make_prompts(), jax.random.key(0), SAMPLING)
    outputs = run_models(state, frozen, rolled, hyper=hyper)
    rows = Rows(rolled, outputs, outputs.scores, jnp.full(ROWS, jnp.nan))
    experience, *_ = make_experience(state, *rows, hyper=hyper)
    fitted = fit_critic(value, rows, experience, gamma=hyper.gamma, lam=hyper.lam)
    np.testing.assert_array_equal(value.head.kernel, state.value.model.head.kernel)
    np.testing.assert_array_equal(value.head.bias, state.value.model.head.bias)
    np.testing.assert_array_equal(fitted.outputs.values, outputs.values)
