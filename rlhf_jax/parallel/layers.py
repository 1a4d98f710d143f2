"""Stacked layers: a model's `blocks`, whose parameters have a leading axis of layers.

A model has them as its attribute `blocks`, itself or in its `backbone`.
"""

import functools
from collections.abc import Callable

import jax

from rlhf_jax.parallel.pipeline import apply_stages, num_stages


def apply_layers(layers, apply: Callable, x, rows, *, scan: bool, checkpoint: Callable):
    """x through all layers: `x = apply(layer, x, rows)` for each.

    Args:
        rows: what is the same for all layers, arrays whose first axis is the batch.
        scan: compile one layer and loop over them; or unroll.
        checkpoint: wraps `apply`, to say what the backward pass computes again.
    """
    if isinstance(layers, StandIn):
        return layers(functools.partial(apply, rows=rows), x)
    apply = checkpoint(apply)
    if num_stages() > 1:
        return apply_stages(layers, apply, x, rows)
    if scan:
        return jax.lax.scan(lambda x, p: (apply(p, x, rows), None), x, layers)[0]
    # Traced once, for all; inlined, or bfloat16 would be rounded otherwise in training
    # than in scoring.
    apply = jax.jit(apply, inline=True)
    for i in range(count(layers)):
        x = apply(take(layers, i), x, rows)
    return x


def count(layers) -> int:
    return jax.tree.leaves(layers)[0].shape[0]


def take(layers, i):
    """Layer i."""
    if isinstance(layers, Apart):
        return layers[i]
    return jax.tree.map(lambda x: x[i], layers)


class Apart(tuple):
    """Layers that are stacked no more. A loop around stacked ones that picks each in
    turn copies them at every step."""


def apart(model):
    """The model with its layers apart, as they are used."""
    layers = Apart(take(model.blocks, i) for i in range(count(model.blocks)))
    model = jax.tree.map(lambda x: x, model)
    # Past nnx's own setter, which would look for arrays in it.
    object.__setattr__(model, "blocks", layers)
    return model


class StandIn:
    """Takes the place of a model's layers: notes with what they are called, and answers
    each call with the next of `outputs`, or with x itself.

    So whoever has a loss `loss_fn(model, batch)`, however often it calls the model, can
    run the layers in its own way and hand the loss what comes out of them.
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
    """A model's layers ({} if it has none), and its other parameters by name."""
    layers = getattr(getattr(model, "backbone", model), "blocks", {})
    leaves, _ = jax.tree_util.tree_flatten_with_path(model)
    return layers, {_name(path): x for path, x in leaves if not _is_stacked(path)}


def join(model, layers, rest: dict):
    """The model with these layers, or a StandIn, and these other parameters."""
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
        # Past nnx's own setter, which would look for arrays in it.
        object.__setattr__(getattr(joined, "backbone", joined), "blocks", layers)
    return joined


def _name(path: tuple) -> str:
    name = jax.tree_util.keystr(path, simple=True, separator=".")
    return name.removesuffix(".value")


def _is_stacked(path: tuple) -> bool:
    return "blocks" in _name(path).split(".")
