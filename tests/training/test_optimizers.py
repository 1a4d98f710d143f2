import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.common import optimizer as optimizer_config
from rlhf_jax.training.metrics import NonFiniteError
from rlhf_jax.training.optimizers import (
    adafactor,
    adamw,
    from_config,
    is_matrix,
    learning_rate_schedule,
    learning_rates,
    sgd,
)
from rlhf_jax.training.state import TrainState, apply_gradients, check_learned


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


@pytest.mark.parametrize("decay", ["constant", "linear", "cosine"])
def test_a_run_may_be_all_warm_up(decay):
    rates = learning_rate_schedule(
        2.0, warmup_steps=4, total_steps=4, decay=decay, final=0.1
    )
    np.testing.assert_allclose([rates(i) for i in range(4)], [0.5, 1.0, 1.5, 2.0])


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


@pytest.mark.parametrize(
    "tx",
    [
        optimizer(weight_decay=0.5),
        adafactor(0.1, weight_decay=0.5, clip_norm=0.0),
    ],
    ids=["adamw", "adafactor"],
)
def test_weight_decay_is_on_kernels_only(tx):
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    state, _ = apply_gradients(TrainState.create(PARAMS, tx), 0.0, zeros, tx)
    np.testing.assert_allclose(state.model["mlp"]["kernel"], 0.95)  # 1 - lr * decay
    np.testing.assert_allclose(state.model["norm"]["scale"], 1.0)


def test_the_steps_of_a_config_are_optax_own():
    config = optimizer_config(1.0)
    config.update(b1=0.8, b2=0.9, eps=1e-2, weight_decay=0.3, clip_norm=0.0)
    mask = jax.tree_util.tree_map_with_path(is_matrix, PARAMS)
    assert jax.tree.leaves(mask) == [True, False]
    for name, theirs in {
        "adamw": optax.adamw(0.1, 0.8, 0.9, 1e-2, weight_decay=0.3, mask=mask),
        "sgd": optax.sgd(0.1),
    }.items():
        config.update(name=name)
        tx = from_config(config).at(0.1)
        state, model = TrainState.create(PARAMS, tx), PARAMS
        expected = theirs.init(model)
        for factor in (1.0, -3.0):
            gradients = jax.tree.map(lambda x, f=factor: f * x + 0.5, PARAMS)
            state, _ = apply_gradients(state, 0.0, gradients, tx)
            updates, expected = theirs.update(gradients, expected, model)
            model = optax.apply_updates(model, updates)
            for x, y in zip(*map(jax.tree.leaves, (state.model, model)), strict=True):
                np.testing.assert_allclose(x, y, rtol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "sgd"])
def test_a_config_says_how_gradients_are_clipped_and_applied(name):
    config = optimizer_config(1.0)
    for clip, clip_norm, fused in (("global", 0.5, False), ("per_layer", 2.0, True)):
        config.update(name=name, clip=clip, clip_norm=clip_norm, fused=fused)
        tx = from_config(config)
        assert (tx.clip, tx.clip_norm, tx.fused) == (clip, clip_norm, fused)
        assert tx.needs_norm == (clip == "global")
    config.update(clip_norm=0.0, clip="global")
    assert not from_config(config).needs_norm


def test_clipping_is_by_the_whole_norm_or_by_that_of_each_layer():
    gradients = {
        "mlp": {"kernel": jnp.full((2, 2), 3.0)},
        "norm": {"scale": jnp.full(2, 4.0)},
    }
    norms = {"mlp": 6.0, "norm": 32**0.5}
    whole = (36 + 32) ** 0.5
    for clip in ("global", "per_layer"):
        tx = dataclasses.replace(sgd(0.1, clip_norm=1.0), clip=clip)
        state, _ = apply_gradients(TrainState.create(PARAMS, tx), 0.0, gradients, tx)
        for name, key in (("mlp", "kernel"), ("norm", "scale")):
            norm = whole if clip == "global" else norms[name]
            expected = 1.0 - 0.1 * gradients[name][key] / norm
            np.testing.assert_allclose(state.model[name][key], expected, rtol=1e-5)
    tx = sgd(0.1, clip_norm=100.0)  # a gradient below the limit stays as it is
    state, _ = apply_gradients(TrainState.create(PARAMS, tx), 0.0, gradients, tx)
    np.testing.assert_allclose(state.model["norm"]["scale"], 0.6, rtol=1e-6)


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
    assert (int(state.step), int(state.skipped)) == (0, 0)
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


@pytest.mark.parametrize(
    ("step", "skipped", "is_refused"),
    [(0, 0, False), (1, 0, False), (3, 2, False), (1, 1, True), (3, 3, True)],
)
def test_a_state_that_skipped_every_update_has_learned_nothing(
    step, skipped, is_refused
):
    state = TrainState(jnp.int32(step), jnp.int32(skipped), PARAMS, {})
    said = pytest.raises(NonFiniteError, match=f"None of {step} updates was applied")
    with said if is_refused else contextlib.nullcontext():
        check_learned(state)


def test_grad_norm_is_of_the_gradient_before_clipping():
    tx = optimizer(clip_norm=1.0)
    gradients = jax.tree.map(lambda x: 3.0 * x, PARAMS)
    _, metrics = apply_gradients(TrainState.create(PARAMS, tx), 0.0, gradients, tx)
    assert metrics["optim/grad_norm"].value() == pytest.approx(
        float(optax.global_norm(gradients))
    )
