"""Exact gradient accumulation: microbatches whose losses add up to the batch's."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def value_and_grad(loss_fn: Callable, model, batch, *, microbatches: int):
    """The gradient of a batch, computed in `microbatches` parts, one at a time.

    Args:
        loss_fn: `(model, batch) -> (loss, metrics)`. The loss is a *share*: it is
            divided by the whole batch's count (bound by the caller), so that the
            shares of the microbatches sum to the loss of the batch, whatever the
            number of tokens in each. `metrics` is a tree of `Mean`s.
        batch: a pytree whose leaves have the batch as their first axis.

    Returns:
        (loss, metrics, gradients), each summed over the microbatches.
    """
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    if microbatches == 1:
        (loss, metrics), gradients = grad_fn(model, batch)
        return loss, metrics, gradients

    def add(total, microbatch):
        return jax.tree.map(jnp.add, total, grad_fn(model, microbatch)), None

    parts = _split(batch, microbatches)
    shapes = jax.eval_shape(grad_fn, model, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    ((loss, metrics), gradients), _ = jax.lax.scan(add, zeros, parts)
    return loss, metrics, gradients


def in_parts(function: Callable, batch, *, parts: int):
    """`function(batch)`, for `parts` parts of the rows one after the other.

    For what computes every row by itself: the result is the same, with less memory.
    """
    if parts == 1:
        return function(batch)
    out = jax.lax.map(function, _split(batch, parts))
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), out)


def _split(batch, parts: int):
    """Leaves [B, ...] as [parts, B / parts, ...].

    Part p takes every parts-th row, from row p on: a device that holds neighbouring
    rows has some of every part, and keeps them.
    """

    def split(x):
        return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(split, batch)
