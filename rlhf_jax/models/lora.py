"""Low-rank adapters of the linear maps of a block: LoRA, Hu et al. (2021), arXiv
2106.09685.

    out = W x + scale B A x,    scale = alpha / rank, or alpha / sqrt(rank)

with the second scale in rsLoRA, Kalajdzievski (2023), arXiv 2312.03732. W stays as it
is, A is random and B zero at the start. Keys and values are one product here, and so
are gate and up: each of the two has an A of its own, as in the published models, where
they are two maps.
"""

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

FLOATS = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class LoRA:
    """The adapters of a model.

    Raises:
        ValueError: a field is out of its bounds.
    """

    rank: int
    alpha: float
    maps: str  # pattern of the maps' names in a block, such as "attention.query"
    rslora: bool = False  # the scale is alpha / sqrt(rank)
    param_dtype: str = "float32"  # dtype of the adapters and heads as they are stored

    def __post_init__(self) -> None:
        if type(self.rank) is not int or self.rank < 1:
            raise ValueError(f"lora.rank={self.rank!r}: not a whole number above 0.")
        is_number = isinstance(self.alpha, int | float)
        if not is_number or isinstance(self.alpha, bool) or not 0 < self.alpha < 1e38:
            raise ValueError(f"lora.alpha={self.alpha!r}: not a number above 0.")
        if not isinstance(self.rslora, bool):
            raise ValueError(f"lora.rslora={self.rslora!r}: not true or false.")
        if self.param_dtype not in FLOATS:
            raise ValueError(f"lora.param_dtype={self.param_dtype!r}: not in {FLOATS}.")
        try:
            re.compile(self.maps)
        except (re.error, TypeError) as error:
            raise ValueError(
                f"lora.maps={self.maps!r} is not a regular expression: {error}."
            ) from None

    @property
    def scale(self) -> float:
        """The factor of an adapter's product."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def equations(equation: str) -> tuple[str, str, str]:
    """Return the einsums of x with A, of that with B, and of A with B (which has the
    axes of the kernel), from the einsum of x with the kernel. The axis `c`, of parts
    that are separate maps, belongs to both A and B."""
    x, kernel, out = equation.replace("->", ",").split(",")
    parts = "".join(a for a in kernel if a == "c")
    summed = "".join(a for a in kernel if a not in out)
    outputs = "".join(a for a in kernel if a in out and a not in parts)
    rows = x[:2]
    a, b, low = f"{summed}{parts}r", f"{parts}r{outputs}", f"{rows}{parts}r"
    return f"{x},{a}->{low}", f"{low},{b}->{out}", f"{a},{b}->{kernel}"


def shapes(equation: str, kernel: tuple[int, ...], rank: int) -> tuple[tuple, tuple]:
    """Return the shapes of A and B for a kernel's einsum and shape."""
    sizes = dict(zip(equation.replace("->", ",").split(",")[1], kernel, strict=True))
    a, b = equations(equation)[2].split("->")[0].split(",")
    sizes["r"] = rank
    return tuple(sizes[axis] for axis in a), tuple(sizes[axis] for axis in b)


def random_a(key: Array, equation: str, shape: tuple[int, ...], dtype: str) -> Array:
    """Draw A: uniform, within 1 / sqrt(inputs) of 0, as the reference code of LoRA."""
    count = len([a for a in equations(equation)[2].split(",")[0] if a not in "cr"])
    bound = 1 / math.sqrt(math.prod(shape[:count]))
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound).astype(dtype)


def add_adapters(block: nnx.Module, lora: LoRA, maps: type, *, rngs: nnx.Rngs) -> None:
    """Put adapters on the maps (modules of the type `maps`) whose names match.

    Raises:
        ValueError: no name matches; the existing ones are listed.
    """
    modules: dict[str, Any] = {
        ".".join(map(str, path)): module
        for path, module in nnx.iter_modules(block)
        if isinstance(module, maps)
    }
    matching = [name for name in sorted(modules) if re.search(lora.maps, name)]
    if not matching:
        raise ValueError(
            f"lora.maps={lora.maps!r} matches no linear map of a block; there are: "
            f"{', '.join(sorted(modules))}."
        )
    for name in matching:
        modules[name].add_adapter(lora, key=rngs.params())
