"""Exact gradient accumulation: microbatches whose losses add up to the batch's."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def value_and_grad(loss_fn: Callable, model, batch, *, microbatches: int):
    """The gradient of a batch, computed `microbatches` rows-slices at a time.

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

    def split(x):
        # Every microbatches-th row: a device that holds neighbouring rows keeps them.
        x = x.reshape(x.shape[0] // microbatches, microbatches, *x.shape[1:])
        return x.swapaxes(0, 1)

    def add(total, microbatch):
        return jax.tree.map(jnp.add, total, grad_fn(model, microbatch)), None

    parts = jax.tree.map(split, batch)
    shapes = jax.eval_shape(grad_fn, model, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    ((loss, metrics), gradients), _ = jax.lax.scan(add, zeros, parts)
    return loss, metrics, gradients
