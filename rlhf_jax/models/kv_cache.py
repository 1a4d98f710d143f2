"""The cache of keys and values of the tokens that a model has read, as a value.

Rows of a batch share their slots: tokens are appended to all rows at once, and the
mask is True at real ones. A cache may be used as a ring: behind its last slot comes
its first, whose token is then forgotten. Keys and values are one array per layer where
layers are unrolled, and one array for all layers where layers are scanned. A step in a
`while_loop` writes its token in place in either case.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class KVCache(NamedTuple):
    """Keys, values and the prefix; B batch, S slots, K key-value heads, H dims of a
    key, V dims of a value. In latent attention a token has one rotary key and one
    latent in their place (`models.latent_attention`).

    `index` is the next free slot. `context` and `mask_place` are the prefix of
    ChatGLM-6B (`positions.prefix`), set when the prompt is read; other models ignore
    both.
    """

    keys: tuple | Array  # Float[Array, "B K H S"], one per layer or stacked
    values: tuple | Array  # Float[Array, "B K S V"], one per layer or stacked
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
    shape: tuple[int, int, int],
    dtype,
    stacked: bool,
) -> KVCache:
    """Return a cache of `length` empty slots.

    Args:
        shape: K, H and V (`ChatGLMConfig.cache_shape`).
    """
    kv_heads, key_dim, value_dim = shape

    def zeros(*shape):
        if stacked:
            return jnp.zeros((layers, *shape), dtype)
        return tuple(jnp.zeros(shape, dtype) for _ in range(layers))

    return KVCache(
        keys=zeros(batch, kv_heads, key_dim, length),
        values=zeros(batch, kv_heads, length, value_dim),
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

    return _with_slots(cache, pad, index=cache.index)


def apart(cache: KVCache) -> KVCache:
    """Return the cache with one array per layer."""
    return cache._replace(keys=tuple(cache.keys), values=tuple(cache.values))


def resize_ring(cache: KVCache, slots: int) -> KVCache:
    """Return a ring with `slots` slots that holds the newest tokens of `cache`."""
    first = cache.index % cache.length  # the slot of the oldest

    def turn(x, axis):
        return jnp.roll(x, -first, axis)

    def last(x, axis):
        return jax.lax.slice_in_dim(x, cache.length - slots, cache.length, axis=axis)

    in_order = _with_slots(cache, turn, index=jnp.int32(cache.length))
    if slots >= cache.length:
        return lengthen(in_order, slots - cache.length)
    return _with_slots(in_order, last, index=jnp.int32(slots))


def take_rows(cache: KVCache, rows: Int[Array, " G"]) -> KVCache:
    """Return the cache of these rows, in this order."""

    def take(x):
        return jnp.take(x, rows, axis=x.ndim - 4, mode="clip")

    return KVCache(
        keys=jax.tree.map(take, cache.keys),
        values=jax.tree.map(take, cache.values),
        mask=cache.mask[rows],
        index=cache.index,
        context=cache.context[rows],
        mask_place=cache.mask_place[rows],
    )


def replace_rows(
    cache: KVCache,
    rows: Int[Array, " G"],
    new: KVCache,
    slots: Int[Array, " W"] | None = None,
) -> KVCache:
    """Return the cache with the contents of `new` in place of these rows. Row numbers
    beyond the cache's batch are left out.

    Args:
        slots: where the W slots of `new` belong; None if both have the same slots.
    """
    places = slice(None) if slots is None else slots

    def put(x, new, *within):
        in_layers = [slice(None)] * (x.ndim - 4)
        if slots is None:
            return x.at[(*in_layers, rows)].set(new, mode="drop")
        # All axes are named, so that none is moved to the front.
        axes = jnp.ix_(*(jnp.arange(n) for n in x.shape[: x.ndim - 4]), rows, *within)
        return x.at[axes].set(new, mode="drop")

    heads, key_dims = (jnp.arange(n) for n in cache.keys[0].shape[-3:-1])
    value_dims = jnp.arange(cache.values[0].shape[-1])
    mask = jnp.zeros((len(rows), cache.length), bool).at[:, places].set(new.mask)
    return cache._replace(
        keys=jax.tree.map(
            lambda x, y: put(x, y, heads, key_dims, places), cache.keys, new.keys
        ),
        values=jax.tree.map(
            lambda x, y: put(x, y, heads, places, value_dims),
            cache.values,
            new.values,
        ),
        mask=cache.mask.at[rows].set(mask, mode="drop"),
        context=cache.context.at[rows].set(new.context, mode="drop"),
        mask_place=cache.mask_place.at[rows].set(new.mask_place, mode="drop"),
    )


def _with_slots(cache: KVCache, change, *, index) -> KVCache:
    """Return the cache with `change(array, axis of the slots)` of its arrays."""
    return cache._replace(
        keys=jax.tree.map(lambda x: change(x, x.ndim - 1), cache.keys),
        values=jax.tree.map(lambda x: change(x, x.ndim - 2), cache.values),
        mask=change(cache.mask, 1),
        index=index,
    )


def write(
    stored: tuple[Float[Array, "*L B K H S"], Float[Array, "*L B K S V"]],
    keys: Float[Array, "B K H T"],
    values: Float[Array, "B K T V"],
    *,
    slot: Int[Array, ""],
    layer: Int[Array, ""] | None = None,
) -> tuple[
    Float[Array, "B K H S"],
    Float[Array, "B K S V"],
    tuple[Float[Array, "*L B K H S"], Float[Array, "*L B K S V"]],
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
