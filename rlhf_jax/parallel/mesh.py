"""The devices as a mesh of three or four axes, laid out for the links between them.

    data     copies of the model, each on its part of the batch
    fsdp     parts of the batch too; the parameters are split among them and gathered
             layer by layer (ZeRO, arXiv 1910.02054)
    tensor   heads, FFN width and vocabulary are split (Megatron, arXiv 1909.08053)
    pipe     layers are split (`pipelining`; only where four sizes are given)

The mesh is a context: `with jax.set_mesh(make_mesh((1, -1, 1))): ...`. Functions that
create, constrain or load arrays use the current mesh; without a mesh all arrays are on
one device.
"""

import itertools
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

AXES = ("data", "fsdp", "tensor", "pipe")


def make_mesh(sizes: Sequence[int], devices: Sequence | None = None) -> Mesh:
    """Make a mesh with the given sizes of data, fsdp, tensor and perhaps pipe; the size
    -1 takes the devices that the others leave.

    Args:
        devices: all devices of the run by default; those of a topology, to compile for
            chips that are not there.

    Raises:
        ValueError: the product of the sizes is not the number of devices; the message
            names the nearest sizes that work.
    """
    devices = jax.devices() if devices is None else devices
    sizes = complete(sizes, len(devices))
    # Each axis becomes a ring or torus, so that its collectives use all links.
    laid_out = mesh_utils.create_device_mesh(
        sizes, devices, allow_split_physical_axes=True
    )
    axes = AXES[: len(sizes)]
    return Mesh(laid_out, axes, axis_types=(AxisType.Auto,) * len(axes))


def platform() -> str:
    """Return the kind of the current mesh's devices, "cpu", "gpu" or "tpu"; without a
    mesh that of jax's own choice. The answer is the same inside a traced function."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def complete(sizes: Sequence[int], num_devices: int) -> tuple[int, ...]:
    """Replace -1 in the sizes; raise ValueError unless they make up the devices."""
    sizes = tuple(sizes)
    numbers = all(isinstance(n, int | np.integer) for n in sizes)
    wrong = not numbers or any(n < 1 and n != -1 for n in sizes)
    if wrong or len(sizes) not in (3, 4) or sizes.count(-1) > 1:
        raise ValueError(
            f"mesh={sizes}: give a size for each of data, fsdp and tensor, and perhaps "
            "pipe: positive numbers, at most one of them -1 for what the others leave."
        )
    known = math.prod(n for n in sizes if n != -1)
    full = tuple(num_devices // known if n == -1 else n for n in sizes)
    if math.prod(full) != num_devices:
        wanted = [max(n, 1) for n in full]
        fitting = sorted(
            (
                shape
                for shape in itertools.product(
                    _divisors(num_devices), repeat=len(sizes)
                )
                if math.prod(shape) == num_devices
            ),
            key=lambda shape: sum(abs(np.log(np.divide(shape, wanted)))),
        )
        raise ValueError(
            f"mesh={sizes} does not make up {num_devices} devices. Nearest that do: "
            f"{', '.join(map(str, fitting[:3]))} of {', '.join(AXES[: len(sizes)])}."
        )
    return full


def check_batch(name: str, size: int, *, parts: int = 1) -> None:
    """Refuse a batch size that the current mesh does not divide.

    Args:
        parts: divides the batch first, as the number of microbatches does.

    Raises:
        ValueError: names the nearest sizes that work.
    """
    shape = dict(jax.sharding.get_abstract_mesh().shape)
    data, fsdp = shape.get("data", 1), shape.get("fsdp", 1)
    unit = row_unit(parts)
    if size < 1 or parts < 1:
        raise ValueError(f"{name}={size} in {parts} parts: both must be at least 1.")
    if size % unit:
        below, above = size // unit * unit, -(-size // unit) * unit
        nearest = f"{below} or {above}" if below else f"{above}"
        raise ValueError(
            f"{name}={size} does not divide among {data=} x {fsdp=} parts of the mesh"
            + (f" in {parts} parts each" if parts > 1 else "")
            + f". Nearest that do: {nearest}."
        )


def row_unit(parts: int) -> int:
    """Return the number of rows that a batch must be a multiple of: its rows, split
    into `parts`, are shared out among the devices of data and fsdp."""
    shape = dict(jax.sharding.get_abstract_mesh().shape)
    return shape.get("data", 1) * shape.get("fsdp", 1) * parts


def check_heads(num_heads: int) -> None:
    """Refuse a number of query heads that the mesh's tensor axis does not divide.

    Key-value heads are few: several devices may hold the same ones.

    Raises:
        ValueError: names the nearest sizes of the axis that work.
    """
    _check_divides("tensor", num_heads, "query heads")


def check_layers(num_layers: int) -> None:
    """Refuse a number of layers that the mesh's pipe axis does not divide.

    Raises:
        ValueError: names the nearest sizes of the axis that work.
    """
    _check_divides("pipe", num_layers, "layers")


def check_experts(num_experts: int) -> None:
    """Refuse a mesh that does not share out the experts of a layer; 0 is a model
    without experts.

    Raises:
        ValueError: layers of experts are not pipelined, or the fsdp axis does not
            divide the experts; then the message names the nearest sizes that work.
    """
    if not num_experts:
        return
    pipe = dict(jax.sharding.get_abstract_mesh().shape).get("pipe", 1)
    if pipe > 1:
        raise ValueError(
            f"The mesh's {pipe=} splits layers, which a model with experts does not "
            "support: leave it out, and give fsdp or tensor its devices."
        )
    _check_divides("fsdp", num_experts, "experts")


def _check_divides(axis: str, count: int, what: str) -> None:
    size = dict(jax.sharding.get_abstract_mesh().shape).get(axis, 1)
    if count % size:
        fitting = _divisors(count)
        below = max(n for n in fitting if n < size)
        above = [f" or {n}" for n in fitting if n > size][:1]
        raise ValueError(
            f"The mesh's {axis}={size} does not divide {count} {what}. Nearest sizes "
            f"that do: {below}{''.join(above)}."
        )


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]
