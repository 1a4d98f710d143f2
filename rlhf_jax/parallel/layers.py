"""Stacked layers: a model's `blocks`, whose parameters have a leading axis of layers.

The attribute `blocks` belongs to the model itself or to its `backbone`.
"""

import functools
from collections.abc import Callable

import jax

from rlhf_jax.parallel.mesh import platform
from rlhf_jax.parallel.pipelining import apply_stages, pipe_size


def apply_layers(layers, apply: Callable, x, rows, *, scan: bool, checkpoint: Callable):
    """Send x through all layers: `x = apply(layer, x, rows)` for each.

    Args:
        rows: arrays that are the same for all layers; their first axis is the batch.
        scan: True compiles one layer and loops over all; False unrolls the loop.
        checkpoint: wraps `apply` and decides what the backward pass recomputes.
    """
    if isinstance(layers, StandIn):
        return layers(functools.partial(apply, rows=rows), x)
    apply = checkpoint(apply)
    if pipe_size() > 1:
        return apply_stages(layers, apply, x, rows)
    if scan:
        return jax.lax.scan(lambda x, p: (apply(p, x, rows), None), x, layers)[0]
    # One trace serves all layers. Inlining keeps the roundings of bfloat16 the same in
    # training and in scoring.
    apply = jax.jit(apply, inline=True)
    for i in range(count(layers)):
        x = apply(take(layers, i), x, rows)
    return x


def count(layers) -> int:
    """Return the number of stacked layers."""
    return jax.tree.leaves(layers)[0].shape[0]


def take(layers, i):
    """Return layer i."""
    if isinstance(layers, Apart):
        return layers[i]
    return jax.tree.map(lambda x: x[i], layers)


@jax.tree_util.register_pytree_with_keys_class
class Apart(tuple):
    """Layers as separate trees."""

    def tree_flatten_with_keys(self):
        return [(jax.tree_util.SequenceKey(i), x) for i, x in enumerate(self)], None

    @classmethod
    def tree_unflatten(cls, _, layers):
        return cls(layers)


def decoded_in_a_loop(scan: bool) -> bool:
    """Return whether a decode loop reads stacked layers, or layers that are apart.

    TPUs read a layer's weights inside the stacked array, and one layer compiles faster
    than all. GPUs and CPUs would copy the weights out of the array at every step.

    Args:
        scan: whether the model's config asks for a loop over the layers.
    """
    return scan and platform() == "tpu"


def apart(model):
    """Return the model with its stacked layers as separate trees."""
    if isinstance(model.blocks, Apart):
        return model
    layers = Apart(take(model.blocks, i) for i in range(count(model.blocks)))
    model = jax.tree.map(lambda x: x, model)
    _set_blocks(model, layers)
    return model


class StandIn:
    """Takes the place of a model's layers: records the arguments of each call and
    returns the next element of `outputs`, or x when there is none.

    The fused update evaluates a loss with a StandIn, runs the layers itself, and passes
    their outputs to the loss, however often the loss calls the model.
    """

    def __init__(self, outputs: tuple = ()):
        self.applies: list[Callable] = []
        self.inputs: list[jax.Array] = []
        self._outputs = iter(outputs)

    def __call__(self, apply, x):
        self.applies.append(apply)
        self.inputs.append(x)
        return next(self._outputs, x)


def split(model) -> tuple:
    """Split a model into its layers ({} if there are none) and its other parameters by
    name."""
    layers = getattr(getattr(model, "backbone", model), "blocks", {})
    leaves, _ = jax.tree_util.tree_flatten_with_path(model)
    return layers, {_name(path): x for path, x in leaves if not _is_stacked(path)}


def join(model, layers, rest: dict):
    """Join layers (or a StandIn) and the other parameters into a model again."""
    leaves, treedef = jax.tree_util.tree_flatten_with_path(model)
    stacked = iter([] if isinstance(layers, StandIn) else jax.tree.leaves(layers))
    joined = jax.tree.unflatten(
        treedef,
        [
            next(stacked, None) if _is_stacked(path) else rest[_name(path)]
            for path, _ in leaves
        ],
    )
    if isinstance(layers, StandIn):
        _set_blocks(getattr(joined, "backbone", joined), layers)
    return joined


def _set_blocks(model, layers) -> None:
    """Set `blocks` without nnx's setter, which would look for arrays in the value."""
    object.__setattr__(model, "blocks", layers)


def _name(path: tuple) -> str:
    name = jax.tree_util.keystr(path, simple=True, separator=".")
    return name.removesuffix(".value")


def _is_stacked(path: tuple) -> bool:
    return "blocks" in _name(path).split(".")
