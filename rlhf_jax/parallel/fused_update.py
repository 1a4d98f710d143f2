"""The optimizer inside the backward pass: the gradient of one layer at a time.

"Model parallelism with fused gradient descent" (ChatGLM-RLHF, arXiv 2404.00934) in its
second meaning. The backward pass walks the layers in reverse; as soon as a layer's
gradient exists, its parameters and moments are written in place, in one loop over the
stacked layers. Parameters outside the layers are updated when their gradient is
complete: the head before the walk, the embedding and what stands between it and the
stacked layers (`dense_blocks`) after it.

Clipping by the norm of the whole gradient needs that norm before the first update: a
second walk computes it.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax.parallel.layers import (
    StandIn,
    Trained,
    count,
    frozen_part,
    join,
    merge,
    split,
    take,
    updated,
)
from rlhf_jax.parallel.sharding import constrain_parameters


class Updated(NamedTuple):
    model: Any
    opt_state: dict
    metrics: dict
    grad_norm: jax.Array  # of the whole gradient, before clipping


def fused_update(
    loss_fn: Callable, model, trained: Trained, opt_state: dict, batch, optimizer
) -> Updated:
    """Update `model` by the gradient of `loss_fn(model, batch)`.

    Args:
        loss_fn: `(model, batch) -> (loss, metrics)`. The function may send several
            inputs through the model's layers; no input may depend on the output of
            another.
        trained: the trained part of the model. The backward pass ends at its lowest
            layer.
        optimizer: a `training.optimizers.Optimizer`.

    A loss that is not finite changes nothing. With global clipping, neither does a
    gradient that is not finite; otherwise that layer and the layers below it stay as
    they are, and the layers above are updated.
    """
    layers, rest = split(model)
    part, trained_rest = trained
    frozen = frozen_part(layers, part)
    lowest = count(layers) - (count(part) if part else 0)  # of the trained layers
    first = {n: x for n, x in trained_rest.items() if _is_before_layers(n)}

    def layer_inputs(first):
        calls = StandIn()
        loss_fn(join(model, calls, rest | first), batch)
        return tuple(calls.inputs)

    def head_loss(trained_rest, outputs):
        return loss_fn(join(model, StandIn(outputs), rest | trained_rest), batch)

    calls = StandIn()
    loss_fn(join(model, calls, rest), batch)

    def apply(layer, xs):
        return tuple(f(layer, x) for f, x in zip(calls.applies, xs, strict=True))

    # Forward: keep the input of every layer that the backward pass comes to.
    x, first_vjp = jax.vjp(layer_inputs, first)
    end = 0 if first else lowest  # the backward pass ends above this layer
    if end:
        x = jax.lax.fori_loop(0, end, lambda i, x: apply(take(layers, i), x), x)
    x, inputs = jax.lax.scan(
        lambda x, i: (apply(take(layers, i), x), x), x, jnp.arange(end, count(layers))
    )
    head_grad = jax.value_and_grad(head_loss, (0, 1), has_aux=True)
    (loss, metrics), gradients = head_grad(trained_rest, x)
    # A loss that is not finite makes every gradient NaN.
    d_rest, d_last = jax.tree.map(
        lambda d: jnp.where(jnp.isfinite(loss), d, jnp.nan), gradients
    )

    def backward(step, part, d_x):
        """Return the place among the trained layers of the layer `step` from the last,
        its trained parameters, their gradient and that of x."""
        i = count(layers) - 1 - step
        others, trained = take(frozen, i), take(part, i - lowest)
        _, vjp = jax.vjp(
            lambda trained, x: apply(merge(others, trained), x),
            trained,
            take(inputs, i - end),
        )
        gradient, d_x = vjp(d_x)
        return i - lowest, trained, constrain_parameters(gradient, layer=True), d_x

    def below(d_x):
        """Return the gradient of the first layer's input, past layers that are frozen,
        from that of the lowest trained layer."""

        def pass_on(step, d_x):
            i = lowest - 1 - step
            _, vjp = jax.vjp(functools.partial(apply, take(layers, i)), take(inputs, i))
            return vjp(d_x)[0]

        return jax.lax.fori_loop(0, lowest, pass_on, d_x) if lowest else d_x

    def with_first(d_rest, d_x):
        if not first:
            return d_rest
        (d_first,) = first_vjp(below(d_x))
        summed = {name: d_rest[name] + d for name, d in d_first.items()}
        return constrain_parameters(d_rest | summed)

    # The norm of the whole gradient, if clipping needs it before the first update.
    steps = count(layers) - lowest
    norm = None
    if optimizer.needs_norm:

        def add_squares(step, carry):
            d_x, squares = carry
            _, _, gradient, d_x = backward(step, part, d_x)
            return d_x, squares + sum_of_squares(gradient)

        start = (d_last, jnp.float32(0.0))
        d_x, squares = jax.lax.fori_loop(0, steps, add_squares, start)
        norm = jnp.sqrt(squares + sum_of_squares(with_first(d_rest, d_x)))

    def update(names, gradients, rest, states):
        """Update parameters outside the layers, each with its own optimizer state."""
        for name in names:
            new, states[name] = optimizer.apply(
                {name: gradients[name]}, states[name], {name: rest[name]}, norm
            )
            rest |= new

    rest_states = dict(opt_state["rest"])
    others = [name for name in trained_rest if name not in first]
    update(others, constrain_parameters(d_rest), rest, rest_states)
    # The barrier delays the walk until the memory of the head's gradient is free.
    d_last, rest = jax.lax.optimization_barrier((d_last, rest))

    def update_layer(step, carry):
        d_x, part, states, squares = carry
        i, trained, gradient, d_x = backward(step, part, d_x)
        new = optimizer.apply(gradient, take(states, i), trained, norm)
        part, states = jax.tree.map(
            lambda whole, one: whole.at[i].set(one), (part, states), new
        )
        return d_x, part, states, squares + sum_of_squares(gradient)

    start = (d_last, part, opt_state["layers"], jnp.float32(0.0))
    d_x, part, states, squares = (
        jax.lax.fori_loop(0, steps, update_layer, start) if steps else start
    )
    d_rest = with_first(d_rest, d_x)
    update(first, d_rest, rest, rest_states)
    if norm is None:
        norm = jnp.sqrt(squares + sum_of_squares(d_rest))
    return Updated(
        model=updated(model, Trained(part, rest)),
        opt_state={"layers": states, "rest": rest_states},
        metrics=metrics,
        grad_norm=norm,
    )


def _is_before_layers(name: str) -> bool:
    """Return whether the input of the stacked layers depends on a parameter."""
    parts = name.split(".")
    return parts[-1] == "embedding" or "dense_blocks" in parts


def sum_of_squares(tree) -> jax.Array:
    return sum(
        (jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(tree)),
        start=jnp.float32(0.0),
    )
