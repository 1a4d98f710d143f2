"""Attention by jax's splash kernel for TPUs, which keeps no scores in memory and skips
blocks that the causal mask forbids.

Letters: B batch, T tokens, N query heads, K key-value heads, H head dim.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as kernels,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as masks,
)
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.models.attention import causal
from rlhf_jax.parallel.sharding import activation_spec

LANES = 128  # the kernel's tile sizes, in tokens, are multiples of this number
LARGEST_BLOCK = 512  # tokens


def splash_attend(
    queries: Float[Array, "B T N H"],
    keys: Float[Array, "B K H T"],
    values: Float[Array, "B K T H"],
    *,
    mask: Bool[Array, "B T"],
    segments: Int[np.ndarray, " T"] | None = None,
    examples: Int[Array, "B T"] | None = None,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """Compute `attention.attend`; results are valid at real tokens, whose `mask` is
    True.

    The compiler cannot partition the kernel, so every device runs it on its own rows
    and heads.

    Args:
        segments: the segments of every row, see `attention.visible`; static at compile
            time.
        examples: the example of each token where a row holds several, see `positions`.
        interpret: run without a TPU, slowly.
    """
    length, heads, head_dim = queries.shape[1:]
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    queries = queries.transpose(0, 2, 1, 3) * head_dim**-0.5
    keys = keys.swapaxes(2, 3)
    if keys.shape[1] % sizes.get("tensor", 1):  # repeat heads: each device needs one
        wanted = sizes["tensor"] if sizes["tensor"] % keys.shape[1] == 0 else heads
        keys, values = (
            jnp.repeat(x, wanted // keys.shape[1], axis=1) for x in (keys, values)
        )
    padding = -length % LANES
    rows = ((0, 0), (0, 0), (0, padding), (0, 0))
    queries, keys, values = (jnp.pad(x, rows) for x in (queries, keys, values))
    # The kernel lets tokens of one number see each other; padding has 0.
    ids = mask.astype(jnp.int32)
    if examples is not None:
        ids = jnp.where(mask, examples + 1, 0)
    ids = jnp.pad(ids, rows[1:3])
    if segments is not None:
        segments = np.pad(segments, (0, padding), mode="edge")

    attend = functools.partial(_attend, segments=segments, interpret=interpret)
    if sizes:
        spec = functools.partial(activation_spec, sizes=sizes)
        names = ("batch", "heads", "length", "head_dim")
        kv_names = ("batch", "kv_heads", "length", "head_dim")
        kv_spec = spec(kv_names, keys.shape)
        attend = jax.shard_map(
            attend,
            in_specs=(
                spec(names, queries.shape),
                kv_spec,
                kv_spec,
                spec(("batch", "length"), ids.shape),
            ),
            out_specs=spec(names, queries.shape),
            check_vma=False,  # the kernel does not declare how its result varies
        )
    out = attend(queries, keys, values, ids)
    return out[:, :, :length].transpose(0, 2, 1, 3)


def _attend(queries, keys, values, ids, *, segments, interpret):
    """Return the attention output [B, heads, T, H] of one device."""
    heads, length = queries.shape[1:3]
    seen = masks.CausalMask((length, length))
    if segments is not None and segments.max() > 1:
        seen = masks.NumpyMask(causal(length, segments))
    block = next(b for b in (LARGEST_BLOCK, 256, LANES) if length % b == 0)
    kernel = kernels.make_splash_mha(
        masks.MultiHeadMask([seen] * heads),
        block_sizes=kernels.BlockSizes(*[block] * 8),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    return jax.vmap(kernel)(queries, keys, values, kernels.SegmentIds(ids, ids))
