"""The cache of keys and values of the tokens that a model has read, as a value.

Rows of a batch share their slots: tokens are appended to all rows at once, and the
mask is True at real ones. Keys and values are one array per layer where layers are
unrolled, and one array for all layers where layers are scanned. A step in a
`while_loop` writes its token in place in either case.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class KVCache(NamedTuple):
    """Keys, values and the prefix; B batch, S slots, K key-value heads, H head dim.

    `index` is the next free slot. `context` and `mask_place` are the prefix of
    ChatGLM-6B (`positions.prefix`), set when the prompt is read; other models ignore
    both.
    """

    keys: tuple | Array  # Float[Array, "B K H S"], one per layer or stacked
    values: tuple | Array  # Float[Array, "B K S H"], one per layer or stacked
    mask: Bool[Array, "B S"]
    index: Int[Array, ""]
    context: Int[Array, " B"]
    mask_place: Int[Array, " B"]

    @property
    def length(self) -> int:
        """The number of slots."""
        return self.mask.shape[1]


def empty(
    batch: int,
    length: int,
    *,
    layers: int,
    kv_heads: int,
    head_dim: int,
    dtype,
    stacked: bool,
) -> KVCache:
    """Return a cache of `length` empty slots."""

    def zeros(*shape):
        if stacked:
            return jnp.zeros((layers, *shape), dtype)
        return tuple(jnp.zeros(shape, dtype) for _ in range(layers))

    return KVCache(
        keys=zeros(batch, kv_heads, head_dim, length),
        values=zeros(batch, kv_heads, length, head_dim),
        mask=jnp.zeros((batch, length), bool),
        index=jnp.int32(0),
        context=jnp.zeros(batch, jnp.int32),
        mask_place=jnp.zeros(batch, jnp.int32),
    )


def lengthen(cache: KVCache, slots: int) -> KVCache:
    """Return the cache with `slots` more empty slots at the end."""

    def pad(x, axis):
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, slots)
        return jnp.pad(x, widths)

    return cache._replace(
        keys=jax.tree.map(lambda x: pad(x, -1), cache.keys),
        values=jax.tree.map(lambda x: pad(x, -2), cache.values),
        mask=pad(cache.mask, -1),
    )


def apart(cache: KVCache) -> KVCache:
    """Return the cache with one array per layer."""
    return cache._replace(keys=tuple(cache.keys), values=tuple(cache.values))


def shift(cache: KVCache, slots: int) -> KVCache:
    """Return the cache without its first `slots`, padded at the end with empty ones."""
    rest = cache._replace(
        keys=jax.tree.map(lambda x: x[..., slots:], cache.keys),
        values=jax.tree.map(lambda x: x[..., slots:, :], cache.values),
        mask=cache.mask[:, slots:],
        index=cache.index - slots,
    )
    return lengthen(rest, slots)


def replace_rows(
    cache: KVCache, rows: Int[Array, " G"], new: KVCache, *, slot: int
) -> KVCache:
    """Return the cache with the contents of `new` in place of these rows, from `slot`
    on. Row numbers beyond the cache's batch are left out."""
    slots = slice(slot, slot + new.length)

    def put(x, new, *within):
        layers = [slice(None)] * (x.ndim - 4)
        return x.at[(*layers, rows, slice(None), *within)].set(new, mode="drop")

    mask = jnp.zeros((len(rows), cache.length), bool).at[:, slots].set(new.mask)
    return cache._replace(
        keys=jax.tree.map(
            lambda x, y: put(x, y, slice(None), slots), cache.keys, new.keys
        ),
        values=jax.tree.map(lambda x, y: put(x, y, slots), cache.values, new.values),
        mask=cache.mask.at[rows].set(mask, mode="drop"),
        context=cache.context.at[rows].set(new.context, mode="drop"),
        mask_place=cache.mask_place.at[rows].set(new.mask_place, mode="drop"),
    )


def write(
    stored: tuple[Float[Array, "*L B K H S"], Float[Array, "*L B K S H"]],
    keys: Float[Array, "B K H T"],
    values: Float[Array, "B K T H"],
    *,
    slot: Int[Array, ""],
    layer: Int[Array, ""] | None = None,
) -> tuple[
    Float[Array, "B K H S"],
    Float[Array, "B K S H"],
    tuple[Float[Array, "*L B K H S"], Float[Array, "*L B K S H"]],
]:
    """Write the keys and values of T tokens into a layer's arrays, from `slot` on.

    Args:
        stored: the layer's arrays, or the stacked arrays of all layers.
        layer: the number of the layer, if `stored` holds all layers.

    Returns:
        The layer's keys and values, and the updated `stored`.
    """
    if layer is None:
        new_keys = jax.lax.dynamic_update_slice_in_dim(stored[0], keys, slot, axis=3)
        new_values = jax.lax.dynamic_update_slice_in_dim(
            stored[1], values, slot, axis=2
        )
        return new_keys, new_values, (new_keys, new_values)
    stored = (
        jax.lax.dynamic_update_slice(stored[0], keys[None], (layer, 0, 0, 0, slot)),
        jax.lax.dynamic_update_slice(stored[1], values[None], (layer, 0, 0, slot, 0)),
    )
    return stored[0][layer], stored[1][layer], stored
