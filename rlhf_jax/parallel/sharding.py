"""Where arrays live on the mesh: one table for parameters, one for everything else.

Training and scoring process many tokens at once: each layer's parameters are gathered,
and rows of the batch stay on their devices. Decoding processes one token a row: the
parameters stay, split over all devices, and the activations move, which are a thousand
times smaller (the "2D weight-stationary" layout of arXiv 2211.05102).

The mesh is that of `jax.set_mesh`. An axis of an array stays whole where the mesh's
axis does not divide it: four devices hold the same two key-value heads. Without a mesh
every function here is the identity, or returns the first device.
"""

import contextlib
import contextvars
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

# Experts are split among the devices of fsdp and never gathered: in training and in
# decoding their tokens come to them (`models.experts`).
EXPERTS = (
    (r"\brouter\.kernel", P()),  # [L, D, E]
    # [L, E, D, 2, F]
    (r"\bexperts\.up\.kernel", P("pipe", "fsdp", None, None, "tensor")),
    (r"\bexperts\.down\.kernel", P("pipe", "fsdp", "tensor", None)),  # [L, E, F, D]
)

# (pattern of a parameter's path, layout): the first match wins. Parameters of blocks
# have a leading axis of layers. The path of an optimizer's moment contains the path of
# its parameter, and both have the same shape. No rule puts fsdp on the last axis: the
# TPU compiler would all-reduce such a gradient instead of scattering it.
PARAMETERS = (
    (r"\bv_(row|col)\b", P()),  # Adafactor's factors: small
    (r"\bembedding\b", P("tensor", "fsdp")),  # [V, D]
    (r"\bquery\.kernel", P("pipe", "fsdp", "tensor", None)),  # [L, D, N, H]
    # [L, D, 2, K, H]
    (r"\bkey_value\.kernel", P("pipe", "fsdp", None, "tensor", None)),
    (r"\boutput\.kernel", P("pipe", "tensor", "fsdp", None)),  # [L, N, H, D]
    *EXPERTS,
    # Latent attention: [L, D, rank], and from a latent to heads [L, rank, N, H].
    (r"\b(query_down|latent)\.kernel", P("pipe", "fsdp", None)),
    (r"\b(key|value)_up\.kernel", P("pipe", "fsdp", "tensor", None)),
    (r"\bup\.kernel", P("pipe", "fsdp", None, "tensor")),  # [L, D, 2, F]
    (r"\bdown\.kernel", P("pipe", ("tensor", "fsdp"), None)),  # [L, F, D]
    (r"\bhead\.kernel", P("fsdp", "tensor")),  # [D, V], or [D, 1]
    # Adapters of rank r: the axes of A and B that they share with the kernel.
    # [L, D, (2,) r], or [L, rank, r]
    (
        r"\b(query|key_value|up|query_down|latent|(key|value)_up)\.lora_a",
        P("pipe", "fsdp"),
    ),
    (r"\boutput\.lora_a", P("pipe", "tensor", "fsdp", None)),  # [L, N, H, r]
    (r"\bdown\.lora_a", P("pipe", ("tensor", "fsdp"), None)),  # [L, F, r]
    # [L, r, N, H]
    (r"\b(query|(key|value)_up)\.lora_b", P("pipe", None, "tensor", None)),
    (r"\b(query_down|latent)\.lora_b", P("pipe")),  # [L, r, rank]
    (r"\bkey_value\.lora_b", P("pipe", None, None, "tensor", None)),  # [L, 2, r, K, H]
    (r"\bup\.lora_b", P("pipe", None, None, "tensor")),  # [L, 2, r, F]
    (r"\b(output|down)\.lora_b", P("pipe")),  # [L, r, D]
    (r"\b(bias|scale|offset|correction)\b", P()),
)

# Axes of activations, caches and batches. Inputs and outputs of a product with a
# parameter have the axis "rows" and the features "heads", "head_part", "ffn" or
# "vocab". Where rows do not interact (attention, sampling) the axis is "batch", and
# features are whole.
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
        *EXPERTS,
        (r"\bquery\.kernel", P(None, None, "tensor", "fsdp")),
        (r"\bkey_value\.kernel", P(None, None, None, "tensor", "fsdp")),
        (r"\boutput\.kernel", P(None, "tensor", "fsdp", None)),
        (r"\b(query_down|latent)\.kernel", P(None, None, ("tensor", "fsdp"))),
        (r"\bvalue_up\.kernel", P(None, None, "tensor", "fsdp")),
        (r"\bup\.kernel", P(None, None, None, ("tensor", "fsdp"))),
        (r"\bdown\.kernel", P(None, ("tensor", "fsdp"), None)),
        (r"\bhead\.kernel", P(None, ("tensor", "fsdp"))),
        (r"\b(query|key_value|up|query_down|latent|value_up)\.lora_a", P()),
        (r"\b(query|value_up)\.lora_b", P(None, None, "tensor", "fsdp")),
        (r"\bkey_value\.lora_b", P(None, None, None, "tensor", "fsdp")),
        (r"\bup\.lora_b", P(None, None, None, ("tensor", "fsdp"))),
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
    """Lay out for decoding whatever is traced inside.

    Enter it inside the jitted function: the cache of `jit` does not know this variable.
    """
    token = _layout.set(DECODING)
    try:
        yield
    finally:
        _layout.reset(token)


def parameter_spec(path: str, shape: tuple[int, ...], sizes: dict[str, int]) -> P:
    """Return the layout of one parameter, by its path in the model's tree. A layer that
    stands apart (`layers.Apart`) is laid out as in the stacked array.

    Raises:
        ValueError: no rule for an array of two or more axes.
    """
    if re.search(r"blocks\[\d+\]", path):
        stacked = re.sub(r"blocks\[\d+\]", "blocks", path)
        return P(*parameter_spec(stacked, (1, *shape), sizes)[1:])
    rules = _layout.get().parameters
    matches = (spec for pattern, spec in rules if re.search(pattern, path))
    spec = next(matches, None)
    if spec is None:
        if len(shape) < 2:
            return P()
        raise ValueError(f"No rule in PARAMETERS for {path}, of shape {shape}.")
    return _fit(spec, shape, sizes)


def layer_specs(tree, path: str, sizes: dict[str, int]):
    """Return the layouts of a part of one layer, without the axis of layers.

    Args:
        path: the path of the part in the model, as ".blocks.mlp".
    """

    def spec(leaf_path, x):
        name = path + jax.tree_util.keystr(leaf_path)
        return P(*parameter_spec(name, (1, *x.shape), sizes)[1:])

    return jax.tree_util.tree_map_with_path(spec, tree)


def parameter_sharding(path: str, shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Return the layout of one parameter as a sharding on `mesh`."""
    return NamedSharding(mesh, parameter_spec(path, shape, dict(mesh.shape)))


def shard_parameters(tree):
    """Return the shapes of a model's or a state's arrays with the shardings of the
    table, to restore into or to compile for."""

    def place(path, x):
        sharding = SingleDeviceSharding(jax.devices()[0])
        mesh = jax.sharding.get_mesh()
        if not mesh.empty:
            sharding = parameter_sharding(jax.tree_util.keystr(path), x.shape, mesh)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(place, tree)


def shapes_of(make, *args):
    """Return the shapes of what `make(*args)` makes, with the shardings of the table;
    nothing is computed. Arguments may be shapes themselves."""
    return shard_parameters(jax.eval_shape(make, *args))


def creator(make, *args, donate: bool = False):
    """Compile `make`, which makes a model or a state, so that every array of its result
    lies where the table says: no array is ever whole on one device.

    Args:
        args: arguments of the shapes that the program will get.
        donate: the result takes over the memory of the arguments, which nobody may
            read afterwards.
    """
    shardings = jax.tree.map(lambda x: x.sharding, shapes_of(make, *args))
    donated = tuple(range(len(args))) if donate else ()
    return jax.jit(make, out_shardings=shardings, donate_argnums=donated)


def create(make, *args, donate: bool = False):
    """Call `make(*args)` by the program of `creator`."""
    return creator(make, *args, donate=donate)(*args)


def constrain(x: jax.Array, *names: str) -> jax.Array:
    """Constrain x to the layout that the table has for axes of these names."""
    assert len(names) == x.ndim, f"{names=} for an array of shape {x.shape}."
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    if not sizes:
        return x
    return jax.lax.with_sharding_constraint(x, activation_spec(names, x.shape, sizes))


def activation_spec(names: tuple[str, ...], shape, sizes: dict[str, int]) -> P:
    """Return the table's layout of an array whose axes have these names."""
    table = _layout.get().activations
    return _fit(P(*(table[name] for name in names)), shape, sizes)


def constrain_parameters(tree, *, layer: bool = False):
    """Constrain a tree to the layout of parameters. Gradients with this layout are
    reduced only where they are used.

    Args:
        layer: whether the tree holds one layer, without the axis of layers.
    """
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    if not sizes:
        return tree

    def place(path, x):
        shape = (1, *x.shape) if layer else x.shape
        spec = parameter_spec(jax.tree_util.keystr(path), shape, sizes)
        return jax.lax.with_sharding_constraint(x, P(*spec[1:]) if layer else spec)

    return jax.tree_util.tree_map_with_path(place, tree)


def batch_sharding(shape: tuple[int, ...], mesh: Mesh, *, axis: int) -> NamedSharding:
    """Return the layout of an array of a batch: rows (axis `axis`) over data and fsdp.
    Rows that the devices do not divide are replicated."""
    spec = P(*[None] * axis, ACTIVATIONS["batch"])
    return NamedSharding(mesh, _fit(spec, shape, dict(mesh.shape)))


def shard_batch(tree, *, axis: int = 0):
    """Put host arrays on the mesh in the layout of `batch_sharding`.

    Every process passes the whole batch and keeps the rows of its own devices.
    """
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return tree

    def place(x):
        x = np.asarray(x)
        sharding = batch_sharding(x.shape, mesh, axis=axis)
        return jax.make_array_from_callback(x.shape, sharding, x.__getitem__)

    return jax.tree.map(place, tree)


def replicate(tree):
    """Put host arrays whole on every device. Every process passes the same."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return jax.tree.map(jnp.asarray, tree)
    everywhere = NamedSharding(mesh, P())
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, everywhere, x.__getitem__),
        tree,
    )


def shards_of_batch() -> int:
    """Return the number of devices that the rows of a batch are shared by."""
    sizes = dict(jax.sharding.get_mesh().shape)
    return math.prod(sizes.get(name, 1) for name in ("data", "fsdp"))


def to_memory(tree, kind: str):
    """Move the arrays to another memory of their devices: "device", or "pinned_host",
    which is memory of the host."""
    return jax.tree.map(
        lambda x: jax.device_put(x, x.sharding.with_memory_kind(kind)), tree
    )


def fetch(tree):
    """Return a tree's arrays on the host, whole, in every process. All processes must
    call it together."""

    def whole(x):
        if isinstance(x, jax.Array) and not (
            x.is_fully_addressable or x.is_fully_replicated
        ):
            everywhere = NamedSharding(x.sharding.mesh, P())
            x = jax.jit(lambda x: x, out_shardings=everywhere)(x)
        return np.asarray(x)

    return jax.tree.map(whole, tree)


def _fit(spec: P, shape, sizes: dict[str, int]) -> P:
    """Drop the axes that the mesh lacks or that do not divide the shape."""

    def keep(axes, size):
        kept = []
        for name in (axes,) if isinstance(axes, str) else axes or ():
            parts = sizes.get(name, 1)
            if parts > 1 and size % parts == 0:
                kept, size = [*kept, name], size // parts
        return tuple(kept) if len(kept) > 1 else kept[0] if kept else None

    return P(*(keep(a, s) for a, s in zip(spec, shape, strict=False)))
