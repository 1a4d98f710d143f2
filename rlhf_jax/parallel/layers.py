"""Stacked layers: a model's `blocks`, whose parameters have a leading axis of layers.

The attribute `blocks` belongs to the model itself or to its `backbone`. A model may
have a few layers of another kind before them, `dense_blocks`, stacked too: the model
itself runs these one after another, and they count here as parameters outside the
layers.
"""

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

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
    if isinstance(layers, PartlyTrained) and scan:
        return layers.scan(apply, x, rows)
    if scan:
        return jax.lax.scan(lambda x, p: (apply(p, x, rows), None), x, layers)[0]
    return apply_unrolled(layers, apply, x, rows)


def apply_unrolled(layers, apply: Callable, x, rows):
    """Send x through all layers, one after another."""
    # One trace serves all layers. Inlining keeps the roundings of bfloat16 the same in
    # training and in scoring.
    apply = jax.jit(apply, inline=True)
    for i in range(count(layers)):
        x = apply(take(layers, i), x, rows)
    return x


def count(layers) -> int:
    """Return the number of stacked layers."""
    if isinstance(layers, PartlyTrained):
        layers = layers.whole
    return jax.tree.leaves(layers)[0].shape[0]


def take(layers, i):
    """Return layer i."""
    if isinstance(layers, Apart):
        return layers[i]
    if isinstance(layers, PartlyTrained):
        return layers.at(i)
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
    whole, model = model, jax.tree.map(lambda x: x, model)
    for name in ("blocks", "dense_blocks"):
        layers = getattr(whole, name, None)
        if layers is not None:
            layers = Apart(take(layers, i) for i in range(count(layers)))
            _set_blocks(model, layers, name)
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


class Trained(NamedTuple):
    """The parameters of a model that an optimizer trains, or their gradients.

    `layers` has the structure of the stacked layers, cut to the trained ones, with None
    in place of frozen parameters; {} if no layer is trained. `rest` has the trained
    parameters outside the layers by name.
    """

    layers: Any
    rest: dict[str, jax.Array]


class PartlyTrained:
    """Takes the place of a model's layers: the last ones are replaced by `trained`, the
    layers of a `Trained`. Below them no parameter has a gradient, so that the backward
    pass ends there."""

    def __init__(self, whole, trained):
        self.whole, self.trained = whole, trained
        self.frozen = frozen_part(whole, trained)
        self.first = count(whole) - (count(trained) if trained else 0)

    def at(self, i: int):
        """Return layer i."""
        if i < self.first:
            return take(self.whole, i)
        return merge(take(self.frozen, i), take(self.trained, i - self.first))

    def scan(self, apply: Callable, x, rows):
        """Send x through the layers in two loops. The frozen weights below are indexed,
        since a slice would copy them; those beside trained ones are scanned, since the
        backward pass would keep a copy of each that is indexed."""

        def below(x, i):
            return apply(take(self.whole, i), x, rows), None

        def above(x, layer):
            return apply(merge(*layer), x, rows), None

        x, _ = jax.lax.scan(below, x, jnp.arange(self.first))
        if self.trained:
            frozen = self.frozen
            if self.first:
                frozen = jax.tree.map(lambda w: w[self.first :], frozen)
            x, _ = jax.lax.scan(above, x, (frozen, self.trained))
        return x


def frozen_part(layers, trained):
    """Return the stacked layers with None in place of the parameters that `trained`
    has."""
    if not trained:
        return layers
    leaves, treedef = jax.tree.flatten(layers)
    pairs = zip(leaves, _leaves(trained), strict=True)
    return jax.tree.unflatten(treedef, [x if y is None else None for x, y in pairs])


def merge(frozen, trained):
    """Return a layer from its two parts, each with None where the other has an
    array."""
    treedef = jax.tree.structure(frozen, is_leaf=is_none)
    pairs = zip(_leaves(frozen), _leaves(trained), strict=True)
    return jax.tree.unflatten(treedef, [x if y is None else y for x, y in pairs])


def _leaves(tree) -> list:
    return jax.tree.leaves(tree, is_leaf=is_none)


def is_none(x) -> bool:
    return x is None


def trained_part(model, pattern: str) -> Trained:
    """Return the parameters whose name the regular expression `pattern` matches
    somewhere; "" returns all.

    The names of a layer's parameters have its number: "blocks.29.mlp.up.kernel",
    "final_norm.scale", "head.kernel". It counts `dense_blocks`, whose own parameters
    have none: "dense_blocks.mlp.up.kernel".

    Raises:
        ValueError: no name matches, or the trained layers are not the last ones, the
            same for each of their parameters.
    """
    layers, rest = split(model)
    if not pattern:
        return Trained(layers, rest)
    rest = {name: x for name, x in rest.items() if re.search(pattern, name)}
    paths, _ = jax.tree_util.tree_flatten_with_path(model)
    stacked = [
        (parameter_name(path), x.shape[0]) for path, x in paths if _is_stacked(path)
    ]
    before = getattr(getattr(model, "backbone", model), "dense_blocks", None)
    before = 0 if before is None else count(before)
    matched = [
        [i for i in range(size) if re.search(pattern, numbered(name, before + i))]
        for name, size in stacked
    ]
    trained = [numbers for numbers in matched if numbers]
    if not trained and not rest:
        names = [
            numbered(name, f"{before}..{before + size - 1}") for name, size in stacked
        ]
        names += [parameter_name(path) for path, _ in paths if not _is_stacked(path)]
        raise ValueError(
            f"optimizer.trainable={pattern!r} matches no parameter; there are: "
            f"{', '.join(names)}."
        )
    if not trained:
        return Trained({}, rest)
    size, first = stacked[0][1], trained[0][0]
    last = list(range(first, size))
    for (name, _), numbers in zip(stacked, matched, strict=True):
        if numbers and numbers != last:
            raise ValueError(
                f"optimizer.trainable={pattern!r} matches {name} of the layers "
                f"{numbers} of {size}: it must match the last layers, the same for "
                "each parameter."
            )
    leaves, treedef = jax.tree.flatten(layers)
    cut = [x[first:] if n else None for x, n in zip(leaves, matched, strict=True)]
    return Trained(jax.tree.unflatten(treedef, cut), rest)


def numbered(name: str, i) -> str:
    """Return the name of a stacked parameter with the number of a layer."""
    return name.replace("blocks.", f"blocks.{i}.", 1)


def with_trained(model, part: Trained):
    """Return the model for a loss, with `part` in place of what it holds itself."""
    layers, rest = split(model)
    same = jax.tree.structure(layers) == jax.tree.structure(part.layers)
    if same and (not layers or count(layers) == count(part.layers)):
        layers = part.layers
    else:
        layers = PartlyTrained(layers, part.layers)
    return join(model, layers, rest | part.rest)


def updated(model, part: Trained):
    """Return the model with new values of its trained parameters."""
    layers, rest = split(model)
    if part.layers:
        first = count(layers) - count(part.layers)
        leaves, treedef = jax.tree.flatten(layers)
        new = [
            x if y is None else x.at[first:].set(y) if first else y
            for x, y in zip(leaves, _leaves(part.layers), strict=True)
        ]
        layers = jax.tree.unflatten(treedef, new)
    return join(model, layers, rest | part.rest)


def split(model) -> tuple:
    """Split a model into its layers ({} if there are none) and its other parameters by
    name."""
    layers = getattr(getattr(model, "backbone", model), "blocks", {})
    leaves, _ = jax.tree_util.tree_flatten_with_path(model)
    return layers, {
        parameter_name(path): x for path, x in leaves if not _is_stacked(path)
    }


def join(model, layers, rest: dict):
    """Join layers (or what takes their place) and the other parameters into a model
    again."""
    leaves, treedef = jax.tree_util.tree_flatten_with_path(model)
    in_place = isinstance(layers, StandIn | PartlyTrained)
    stacked = iter([] if in_place else jax.tree.leaves(layers))
    joined = jax.tree.unflatten(
        treedef,
        [
            next(stacked, None) if _is_stacked(path) else rest[parameter_name(path)]
            for path, _ in leaves
        ],
    )
    if in_place:
        _set_blocks(getattr(joined, "backbone", joined), layers)
    return joined


def _set_blocks(model, layers, name: str = "blocks") -> None:
    """Set layers without nnx's setter, which would look for arrays in the value."""
    object.__setattr__(model, name, layers)


def parameter_name(path: tuple) -> str:
    """Return the name of an array of a model, as "head.kernel"."""
    name = jax.tree_util.keystr(path, simple=True, separator=".")
    return name.removesuffix(".value")


def _is_stacked(path: tuple) -> bool:
    return "blocks" in parameter_name(path).split(".")
