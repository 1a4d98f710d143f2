"""Where arrays live on the mesh: one table for parameters, one for everything else.

Many tokens at once, in training and scoring: the parameters that a layer needs are
gathered, and rows of the batch stay where they are. One token a row, in decoding: the
parameters stay, split over all devices, and the tokens go around, which are a thousand
times smaller (the "2D weight-stationary" layout of arXiv 2211.05102).

The mesh is `jax.set_mesh`'s. An axis of an array stays whole where the mesh's axis does
not divide it: two key-value heads on four devices are held by all. Without a mesh every
function here is the identity, or answers with the first device.
"""

import contextlib
import contextvars
import re
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

# (pattern of a parameter's path, layout): the first match wins. Parameters of blocks
# have a leading axis of layers. The optimizer's moments have their parameter's path
# within their own, and its shape. Never fsdp on the last axis: the TPU compiler would
# sum up such a gradient on all devices instead of scattering it.
PARAMETERS = (
    (r"\bv_(row|col)\b", P()),  # Adafactor's factors: small
    (r"\bembedding\b", P("tensor", "fsdp")),  # [V, D]
    (r"\bquery\.kernel", P("stage", "fsdp", "tensor", None)),  # [L, D, N, H]
    # [L, D, 2, K, H]
    (r"\bkey_value\.kernel", P("stage", "fsdp", None, "tensor", None)),
    (r"\boutput\.kernel", P("stage", "tensor", "fsdp", None)),  # [L, N, H, D]
    (r"\bup\.kernel", P("stage", "fsdp", None, "tensor")),  # [L, D, 2, F]
    (r"\bdown\.kernel", P("stage", ("tensor", "fsdp"), None)),  # [L, F, D]
    (r"\bhead\.kernel", P("fsdp", "tensor")),  # [D, V], or [D, 1]
    (r"\b(bias|scale|offset)\b", P()),
)

# Axes of activations, caches and batches. What a product with a parameter reads and
# writes has "rows", its features are "heads", "head_part", "ffn" and "vocab"; where
# every row is by itself (attention, sampling) it is "batch", and features are whole.
ACTIVATIONS = {
    "batch": ("data", "fsdp"),
    "rows": ("data", "fsdp"),
    "layers": None,
    "length": None,
    "slots": None,
    "width": None,
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "head_part": None,
    "parts": None,  # keys and values
    "ffn": "tensor",
    "vocab": "tensor",
    "tokens": None,  # the vocabulary, whole
}


class Layout(NamedTuple):
    """A table for parameters, and one for everything else."""

    parameters: tuple
    activations: dict


TRAINING = Layout(PARAMETERS, ACTIVATIONS)
DECODING = Layout(
    (
        (r"\bquery\.kernel", P(None, None, "tensor", "fsdp")),
        (r"\bkey_value\.kernel", P(None, None, None, "tensor", "fsdp")),
        (r"\boutput\.kernel", P(None, "tensor", "fsdp", None)),
        (r"\bup\.kernel", P(None, None, None, ("tensor", "fsdp"))),
        (r"\bdown\.kernel", P(None, ("tensor", "fsdp"), None)),
        (r"\bhead\.kernel", P(None, ("tensor", "fsdp"))),
        *PARAMETERS,
    ),
    ACTIVATIONS
    | {
        "rows": "data",
        "head_part": "fsdp",
        "ffn": ("tensor", "fsdp"),
        "vocab": ("tensor", "fsdp"),
    },
)
_layout = contextvars.ContextVar("layout", default=TRAINING)


@contextlib.contextmanager
def decoding() -> Iterator[None]:
    """What is traced inside is laid out for one token a row."""
    token = _layout.set(DECODING)
    try:
        yield
    finally:
        _layout.reset(token)


def parameter_spec(path: str, shape: tuple[int, ...], sizes: dict[str, int]) -> P:
    """The layout of one parameter, by its path in the model's tree.

    Raises:
        ValueError: no rule for an array of two or more axes.
    """
    rules = _layout.get().parameters
    matches = (spec for pattern, spec in rules if re.search(pattern, path))
    spec = next(matches, None)
    if spec is None:
        if len(shape) < 2:
            return P()
        raise ValueError(f"No rule in PARAMETERS for {path}, of shape {shape}.")
    return _fit(spec, shape, sizes)


def parameter_sharding(path: str, shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """The same as a sharding."""
    return NamedSharding(mesh, parameter_spec(path, shape, dict(mesh.shape)))


def shard_parameters(tree):
    """The shapes of a model's or a state's arrays, with the shardings of the table:
    what to restore into, or to compile for."""

    def place(path, x):
        sharding = SingleDeviceSharding(jax.devices()[0])
        mesh = jax.sharding.get_mesh()
        if not mesh.empty:
            sharding = parameter_sharding(jax.tree_util.keystr(path), x.shape, mesh)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(place, tree)


def creator(make, *args):
    """`make`, of a model or a state from arguments like these, as one program that
    leaves every array where the table says: nothing is ever whole on one device."""
    shapes = shard_parameters(jax.eval_shape(make, *args))
    return jax.jit(make, out_shardings=jax.tree.map(lambda x: x.sharding, shapes))


def create(make, *args):
    """`make(*args)` by such a program."""
    return creator(make, *args)(*args)


def constrain(x: jax.Array, *names: str) -> jax.Array:
    """Ask for the layout that the table has for axes of these names."""
    assert len(names) == x.ndim, f"{names=} for an array of shape {x.shape}."
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    if not sizes:
        return x
    return jax.lax.with_sharding_constraint(x, activation_spec(names, x.shape, sizes))


def activation_spec(names: tuple[str, ...], shape, sizes: dict[str, int]) -> P:
    """The layout that the table has for an array whose axes have these names."""
    table = _layout.get().activations
    return _fit(P(*(table[name] for name in names)), shape, sizes)


def constrain_parameters(tree, *, layer: bool = False):
    """Ask for the layout of parameters, for gradients for example: they are then
    summed up where they are needed, and nowhere else.

    Args:
        layer: the tree is of one layer's parameters, without the axis of layers.
    """
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    if not sizes:
        return tree

    def place(path, x):
        shape = (1, *x.shape) if layer else x.shape
        spec = parameter_spec(jax.tree_util.keystr(path), shape, sizes)
        return jax.lax.with_sharding_constraint(x, P(*spec[1:]) if layer else spec)

    return jax.tree_util.tree_map_with_path(place, tree)


def shard_batch(tree, *, axis: int = 0):
    """Put host arrays on the mesh, rows (axis `axis`) over data and fsdp; all devices
    get rows that these do not divide.

    Every process passes the whole batch, and keeps the rows of its own devices.
    """
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return tree

    def place(x):
        x = np.asarray(x)
        spec = P(*[None] * axis, ACTIVATIONS["batch"])
        sharding = NamedSharding(mesh, _fit(spec, x.shape, dict(mesh.shape)))
        return jax.make_array_from_callback(x.shape, sharding, x.__getitem__)

    return jax.tree.map(place, tree)


def to_memory(tree, kind: str):
    """The arrays in another memory of their devices: "device", or "pinned_host" for
    those that wait."""
    return jax.tree.map(
        lambda x: jax.device_put(x, x.sharding.with_memory_kind(kind)), tree
    )


def fetch(tree):
    """A tree's arrays on the host, whole, in every process. All must ask together."""

    def whole(x):
        if isinstance(x, jax.Array) and not (
            x.is_fully_addressable or x.is_fully_replicated
        ):
            everywhere = NamedSharding(x.sharding.mesh, P())
            x = jax.jit(lambda x: x, out_shardings=everywhere)(x)
        return np.asarray(x)

    return jax.tree.map(whole, tree)


def _fit(spec: P, shape, sizes: dict[str, int]) -> P:
    """The spec without axes that the mesh lacks or that do not divide the shape."""

    def keep(axes, size):
        kept = []
        for name in (axes,) if isinstance(axes, str) else axes or ():
            parts = sizes.get(name, 1)
            if parts > 1 and size % parts == 0:
                kept, size = [*kept, name], size // parts
        return tuple(kept) if len(kept) > 1 else kept[0] if kept else None

    return P(*(keep(a, s) for a, s in zip(spec, shape, strict=False)))
