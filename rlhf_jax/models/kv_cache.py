"""What a model remembers of the tokens it has read, as a value.

Rows of a batch share their slots: tokens are appended to all rows at once, and the
mask says which are real. Keys and values are one array per layer, so that a step in a
`while_loop` writes its token in place; one array for all layers would be copied.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class KVCache(NamedTuple):
    """Letters: B batch, S slots, K key-value heads, H head dim.

    `index` is the next free slot. `context` and `mask_place` are the prefix of
    ChatGLM-6B (`positions.prefix`), found when the prompt is read; others ignore them.
    """

    keys: tuple  # of Float[Array, "B K H S"], one per layer
    values: tuple  # of Float[Array, "B K S H"], one per layer
    mask: Bool[Array, "B S"]
    index: Int[Array, ""]
    context: Int[Array, "B"]
    mask_place: Int[Array, "B"]

    @property
    def length(self) -> int:
        """The number of slots."""
        return self.mask.shape[1]


def empty(
    batch: int, length: int, *, layers: int, kv_heads: int, head_dim: int, dtype
) -> KVCache:
    """A cache of `length` slots that has read nothing."""
    keys = [
        jnp.zeros((batch, kv_heads, head_dim, length), dtype) for _ in range(layers)
    ]
    values = [
        jnp.zeros((batch, kv_heads, length, head_dim), dtype) for _ in range(layers)
    ]
    return KVCache(
        keys=tuple(keys),
        values=tuple(values),
        mask=jnp.zeros((batch, length), bool),
        index=jnp.int32(0),
        context=jnp.zeros(batch, jnp.int32),
        mask_place=jnp.zeros(batch, jnp.int32),
    )


def write(
    layer: tuple[Float[Array, "B K H S"], Float[Array, "B K S H"]],
    keys: Float[Array, "B K H T"],
    values: Float[Array, "B K T H"],
    index: Int[Array, ""],
) -> tuple[Float[Array, "B K H S"], Float[Array, "B K S H"]]:
    """Put T tokens into one layer's arrays, from slot `index` on."""
    return (
        jax.lax.dynamic_update_slice_in_dim(layer[0], keys, index, axis=3),
        jax.lax.dynamic_update_slice_in_dim(layer[1], values, index, axis=2),
    )
