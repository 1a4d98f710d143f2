"""Rotary position embedding (arXiv 2104.09864).

A head's dims are turned in pairs: pair i of a token at position p by the angle
p * base^(-2i/r), r being the number of rotated dims. There are two layouts:

- "interleaved" (all but ChatGLM-6B): one position a token, pairs (0, 1), (2, 3), ...
  of the first r dims; the other dims are unchanged.
- "two_axes" (ChatGLM-6B): two positions a token. The first half of the dims turns by
  the first position, the second half by the second position, with pairs (i, i + r/2)
  in each half.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rlhf_jax.models.rope_scaling import RopeScaling


def rotation(
    positions: Int[Array, "B T A"],
    *,
    layout: str,
    head_dim: int,
    rotary_dims: int,
    base: float,
    position_divisor: float,
    scaling: RopeScaling | None = None,
) -> tuple[Float[Array, "B T 1 C"], Float[Array, "B T 1 C"]]:
    """Return cosine and sine for each pair of a head's dims (C = head_dim / 2),
    float32.

    Args:
        positions: A positions per token, 1 or 2 as the layout needs.
        rotary_dims: r, the number of rotated dims.
        position_divisor: the divisor of positions: 50 for ChatGLM2-6B-32k, the factor
            of "linear" scaling, else 1.
        scaling: the scaling of frequencies other than "linear".
    """
    if scaling is None:
        exponents = np.arange(0, rotary_dims, 2) / rotary_dims
        frequencies = (1.0 / base**exponents).astype(np.float32)
    else:
        frequencies = scaling.frequencies(base, rotary_dims).astype(np.float32)
    if layout == "two_axes":
        # The published ChatGLM-6B was trained with frequencies in float16, which are
        # float16 in a float32 model too: an error of 0.3 rad at position 2047.
        frequencies = frequencies.astype(np.float16).astype(np.float32)
    places = positions.astype(jnp.float32) / position_divisor
    angles = places[..., None] * frequencies.reshape(1, 1, 1, -1)
    angles = angles.reshape(*positions.shape[:2], 1, -1)
    # Unrotated dims are pairs turned by zero, which needs no slicing or joining.
    rest = head_dim // 2 - angles.shape[-1]
    angles = jnp.pad(angles, ((0, 0), (0, 0), (0, 0), (0, rest)))
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if scaling is not None:
        turned = jnp.arange(head_dim // 2) < head_dim // 2 - rest
        longer = jnp.where(turned, scaling.attention_factor, 1.0)
        cos, sin = cos * longer[None, None, None], sin * longer[None, None, None]
    return cos, sin


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
