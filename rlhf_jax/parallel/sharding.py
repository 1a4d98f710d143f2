"""Where arrays live on a mesh with axes data, fsdp and tensor."""

import re

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

# (pattern of a parameter's path, layout): the first match wins. Parameters of blocks
# have a leading axis of layers.
PARAMETERS = (
    (r"\.embedding\b", P("tensor", "fsdp")),  # [V, D]
    (r"\.query\.kernel", P(None, "fsdp", "tensor", None)),  # [L, D, N, H]
    (r"\.key_value\.kernel", P(None, "fsdp", None, "tensor", None)),  # [L, D, 2, K, H]
    (r"\.output\.kernel", P(None, "tensor", None, "fsdp")),  # [L, N, H, D]
    (r"\.up\.kernel", P(None, "fsdp", None, "tensor")),  # [L, D, 2, F]
    (r"\.down\.kernel", P(None, "tensor", "fsdp")),  # [L, F, D]
    (r"\.head\.kernel", P("fsdp", "tensor")),  # [D, V], or [D, 1]
    (r"\.(bias|scale|offset)\b", P()),
)


def parameter_sharding(path: str, shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """The layout of one parameter, by its path in the model's tree.

    An axis stays whole where the mesh's axis does not divide it: two key-value heads
    on four devices are held by all.
    """
    matches = (spec for pattern, spec in PARAMETERS if re.search(pattern, path))
    spec = next(matches, None)
    if spec is None:
        raise ValueError(f"No rule in PARAMETERS for {path}, of shape {shape}.")

    def fits(axis, size):
        return axis in mesh.shape and size % mesh.shape[axis] == 0

    axes = [a if fits(a, s) else None for a, s in zip(spec, shape, strict=False)]
    return NamedSharding(mesh, P(*axes))


def constrain(x: jax.Array, *names: str) -> jax.Array:
    """Ask for a layout by the names of the axes; the identity without a mesh."""
    assert len(names) == x.ndim, f"{names=} for an array of shape {x.shape}."
    return x
