"""Exact gradient accumulation: the losses of the microbatches sum to the batch's."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def value_and_grad(loss_fn: Callable, model, batch, *, microbatches: int):
    """Compute the gradient of a batch in `microbatches` parts, one at a time.

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
    """Return `function(batch)`, computed for `parts` parts of the rows one after
    another.

    A function that computes every row independently has the same result, in less
    memory.
    """
    if parts == 1:
        return function(batch)
    out = jax.lax.map(function, _split(batch, parts))
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), out)


def _split(batch, parts: int):
    """Split leaves [B, ...] into [parts, B / parts, ...].

    Part p takes every parts-th row from row p on: each device holds neighbouring rows,
    so it has rows of every part, and no row moves between devices.
    """

    def split(x):
        return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(split, batch)
