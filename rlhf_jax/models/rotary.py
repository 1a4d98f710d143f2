"""Rotary position embedding as the ChatGLM generations use it (arXiv 2104.09864).

A head's dims are turned in pairs: pair i of a token at position p by the angle
p * base^(-2i/r), r being the number of rotated dims. Two layouts:

- "interleaved" (ChatGLM2 and later): one position a token, pairs (0, 1), (2, 3), ...
  of the first r dims; the other dims pass.
- "two_axes" (ChatGLM-6B): two positions a token. The first half of the dims turns by
  the first, the second half by the second, with pairs (i, i + r/2) in each half.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def rotation(
    positions: Int[Array, "B T A"],
    *,
    layout: str,
    head_dim: int,
    rotary_dims: int,
    base: float,
    position_divisor: float,
) -> tuple[Float[Array, "B T 1 C"], Float[Array, "B T 1 C"]]:
    """Cosine and sine for every pair of a head's dims (C = head_dim / 2), float32.

    Args:
        positions: one or two (A) positions per token, as the layout needs.
        position_divisor: ChatGLM2-6B-32k was trained with positions divided by 50.
    """
    exponents = np.arange(0, rotary_dims, 2) / rotary_dims
    frequencies = (1.0 / base**exponents).astype(np.float32)
    if layout == "two_axes":
        # The published ChatGLM-6B keeps them in float16, also in a float32 model: 0.3
        # rad off at position 2047, and trained that way.
        frequencies = frequencies.astype(np.float16).astype(np.float32)
    places = positions.astype(jnp.float32) / position_divisor
    angles = places[..., None] * frequencies.reshape(1, 1, 1, -1)
    angles = angles.reshape(*positions.shape[:2], 1, -1)
    # The dims that pass are pairs turned by zero: no slicing or joining.
    rest = head_dim // 2 - angles.shape[-1]
    angles = jnp.pad(angles, ((0, 0), (0, 0), (0, 0), (0, rest)))
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "B T N H"],
    cos_sin: tuple[Float[Array, "B T 1 C"], Float[Array, "B T 1 C"]],
    *,
    layout: str,
) -> Float[Array, "B T N H"]:
    """Turn queries or keys by the angles of `rotation`, in float32."""
    if layout == "interleaved":
        pairs = x.reshape(*x.shape[:-1], -1, 2)
        axis = -1
    else:
        pairs = x.reshape(*x.shape[:-1], 2, 2, -1)
        axis = -2
    first = jnp.take(pairs, 0, axis).astype(jnp.float32)
    second = jnp.take(pairs, 1, axis).astype(jnp.float32)
    cos, sin = (t.reshape(*t.shape[:3], *first.shape[3:]) for t in cos_sin)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.stack(turned, axis).reshape(x.shape).astype(x.dtype)
