import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.common import optimizer as optimizer_config
from rlhf_jax.training.optimizers import (
    adamw,
    from_config,
    learning_rate_schedule,
    learning_rates,
)
from rlhf_jax.training.state import TrainState, apply_gradients


def test_schedule_warms_up_and_decays():
    make = lambda decay: learning_rate_schedule(  # noqa: E731
        2.0, warmup_steps=4, total_steps=14, decay=decay, final=0.1
    )
    linear = make("linear")
    np.testing.assert_allclose(
        [linear(i) for i in range(5)], [0.5, 1.0, 1.5, 2.0, 2.0], rtol=1e-6
    )
    assert linear(9) == pytest.approx(1.1)  # half way from 2 to 0.2
    for decay in ("linear", "cosine"):
        assert make(decay)(14) == pytest.approx(0.2)
    assert make("constant")(14) == 2.0


def test_unknown_decay_lists_the_known():
    with pytest.raises(ValueError, match=r"decay='exp'.*constant.*cosine.*linear"):
        learning_rate_schedule(1.0, warmup_steps=0, total_steps=1, decay="exp", final=0)


PARAMS = {"mlp": {"kernel": jnp.ones((2, 2))}, "norm": {"scale": jnp.ones(2)}}


def optimizer(**changes):
    settings = {
        "b1": 0.9,
        "b2": 0.95,
        "eps": 1e-8,
        "weight_decay": 0.0,
        "clip_norm": 0.0,
    }
    return adamw(0.1, **settings | changes)


def test_weight_decay_is_on_kernels_only():
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    tx = optimizer(weight_decay=0.5)
    state, _ = apply_gradients(TrainState.create(PARAMS, tx), 0.0, zeros, tx)
    np.testing.assert_allclose(state.model["mlp"]["kernel"], 0.95)  # 1 - lr * decay
    np.testing.assert_allclose(state.model["norm"]["scale"], 1.0)


def test_the_learning_rate_is_an_input_of_the_step():
    tx = optimizer()

    @jax.jit
    def step(state, learning_rate):
        gradients = jax.tree.map(jnp.ones_like, PARAMS)
        return apply_gradients(state, 0.0, gradients, tx.at(learning_rate))[0]

    state = TrainState.create(PARAMS, tx)
    for rate in (0.0, 0.1, 0.2):  # Adam's first step is as long as its rate
        moved = step(state, rate).model["norm"]["scale"]
        np.testing.assert_allclose(moved, 1.0 - rate, atol=1e-6)
    assert step._cache_size() == 1


@pytest.mark.parametrize("name", ["adamw", "adafactor", "sgd"])
def test_a_config_gives_the_rate_of_every_step_and_an_optimizer_without_one(name):
    config = optimizer_config(3e-3)
    config.update(name=name, warmup_steps=2, decay="linear")
    tx, rates = from_config(config), learning_rates(config, 5)
    schedule = learning_rate_schedule(
        3e-3, warmup_steps=2, total_steps=5, decay="linear", final=config.final
    )  # fmt: skip
    np.testing.assert_allclose(rates, [schedule(i) for i in range(5)], rtol=1e-6)
    assert rates.dtype == np.float32
    with pytest.raises(TypeError):  # a stage cannot forget to pass it
        apply_gradients(TrainState.create(PARAMS, tx), 0.0, PARAMS, tx)


def test_a_gradient_that_is_not_finite_changes_nothing_but_the_counters():
    tx = optimizer(clip_norm=1.0)
    state = TrainState.create(PARAMS, tx)
    good = jax.tree.map(jnp.ones_like, PARAMS)
    bad = jax.tree.map(lambda x: x.at[0].set(jnp.nan), good)
    state, _ = apply_gradients(state, 0.0, good, tx)
    skipped, metrics = apply_gradients(state, 0.0, bad, tx)
    for a, b in zip(
        jax.tree.leaves((skipped.model, skipped.opt_state)),
        jax.tree.leaves((state.model, state.opt_state)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    assert (int(skipped.step), int(skipped.skipped)) == (2, 1)
    assert metrics["optim/skipped"] == 1
    recovered, _ = apply_gradients(skipped, 0.0, good, tx)
    assert int(recovered.skipped) == 0
    assert (recovered.model["norm"]["scale"] != state.model["norm"]["scale"]).all()


def test_grad_norm_is_of_the_gradient_before_clipping():
    tx = optimizer(clip_norm=1.0)
    gradients = jax.tree.map(lambda x: 3.0 * x, PARAMS)
    _, metrics = apply_gradients(TrainState.create(PARAMS, tx), 0.0, gradients, tx)
    assert metrics["optim/grad_norm"].value() == pytest.approx(
        float(optax.global_norm(gradients))
    )
