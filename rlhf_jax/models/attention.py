"""Grouped-query attention (arXiv 2305.13245) and its masks.

Letters: B batch, T query tokens, S key slots, N query heads, K key-value heads, H dims
of a key, V dims of a value, Q dims of a query: Q = H, or H + V where those after the
first H are multiplied by the values (`models.latent_attention`). Query head n reads
key-value head n // (N / K): neighbours share. Scores are divided by sqrt(Q), or
multiplied by `scale`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.models.config import ChatGLMConfig
from rlhf_jax.models.positions import by_token, count_before

# Finite, so that the row of a padded query is uniform and not NaN.
MASKED = -1e30
# Blocks of `block_attend`: the fewest queries in one, and the most blocks in a row.
SMALLEST_BLOCK, MOST_BLOCKS = 64, 8
LEAST_GPU = "8.0"  # the compute capability of cuDNN's attention: Ampere


def visible(
    mask: Bool[Array, "B S"],
    *,
    query_slots: Int[Array, " T"],
    segments: Int[Array, "B S"] | None = None,
    examples: Int[Array, "B S"] | None = None,
    context: Int[Array, "B ..."] | None = None,
    window: int | None = None,
) -> Bool[Array, "B T S"]:
    """Return the slots that each query sees: real ones, not later than the query.

    Args:
        mask: True at slots that hold a real token.
        query_slots: the slot of each query.
        segments: the segment of each slot, or None. A token sees the prompt (segment 0)
            and its own segment; T = S is required.
        examples: the example of each slot where a row holds several, see `positions`,
            or None. A token sees its own example alone; T = S is required.
        context: the number of real tokens at the start of the row, or of each slot's
            example, that every query of it sees, for ChatGLM-6B.
        window: the number of tokens that a query sees, itself included; None for all.
    """
    slots = jnp.arange(mask.shape[1])
    seen = (slots[None, :] <= query_slots[:, None])[None]
    if segments is not None:
        key, query = segments[:, None, :], segments[:, :, None]
        seen = seen & ((key == 0) | (key == query))
    if window is not None:
        places = count_before(mask, segments, examples)
        since = places[:, query_slots, None] - places[:, None, :]
        seen = seen & (since < window)
    if context is not None:
        in_context = count_before(mask, segments, examples) < by_token(context)
        if segments is not None:
            in_context = in_context & (segments == 0)
        seen = seen | in_context[:, None, :]
    if examples is not None:
        seen = seen & (examples[:, None, :] == examples[:, :, None])
    return seen & mask[:, None, :]


def visible_behind(
    prompts: Bool[Array, "B P"],
    mask: Bool[Array, "B S"],
    *,
    query_slots: Int[Array, " T"],
    places: Int[Array, "B T"],
    window: int | None = None,
) -> Bool[Array, "B T P+S"]:
    """Return the slots that the queries of responses see: those of the prompts, all of
    which are earlier, and those of a ring of the rows' own (`kv_cache`).

    Args:
        prompts: True at real tokens of each row's prompt.
        mask: True at slots that hold a token of the row.
        query_slots: the slot of each query in the ring.
        places: the number of tokens that each query sees before itself.
        window: the number of tokens that a query sees, itself included; None for all.
    """
    in_prompt = prompts.sum(axis=1)[:, None]
    age = (query_slots[:, None] - jnp.arange(mask.shape[1])[None]) % mask.shape[1]
    own = mask[:, None] & (age[None] <= (places - in_prompt)[..., None])
    before = jnp.broadcast_to(prompts[:, None], (*places.shape, prompts.shape[1]))
    if window is not None:
        since = places[..., None] - count_before(prompts)[:, None]
        before, own = before & (since < window), own & (age < window)[None]
    return jnp.concatenate([before, own], axis=-1)


def causal(
    length: int, segments: Int[np.ndarray, " T"] | None = None
) -> Bool[np.ndarray, "T T"]:
    """Return `visible` of rows without padding that share the same segments."""
    seen = np.tril(np.ones((length, length), bool))
    if segments is not None:
        key, query = segments[None, :], segments[:, None]
        seen &= (key == 0) | (key == query)
    return seen


def library_attend(
    queries: Float[Array, "B T N H"],
    keys: Float[Array, "B K H S"],
    values: Float[Array, "B K S H"],
    seen: Bool[Array, "B T S"],
    *,
    implementation: str,
) -> Float[Array, "B T N H"]:
    """Compute `attend` by `jax.nn.dot_product_attention`; its implementation "cudnn" is
    a kernel for GPUs, without scores in memory."""
    return jax.nn.dot_product_attention(
        queries,
        keys.transpose(0, 3, 1, 2),
        values.transpose(0, 2, 1, 3),
        mask=seen[:, None],
        implementation=implementation,
    )


cudnn_attend = functools.partial(library_attend, implementation="cudnn")


def cudnn_refusal(config: ChatGLMConfig, *, rows: int, queries: int, slots: int) -> str:
    """Return why cuDNN has no attention for arrays of these sizes, in a line; "" if
    cuDNN has it.

    jax is asked by tracing the kernel and its gradient: the limits (16 bits, dims of a
    head, even lengths in training) differ between versions and GPUs.
    """
    c, shards = config, jax.sharding.get_abstract_mesh().shape.get("tensor", 1)
    if c.num_kv_heads % shards:
        return f"the mesh's tensor={shards} does not divide {c.num_kv_heads=}"
    # A GPU says "9.0"; other devices have no such version. jax does not look at it.
    version = getattr(jax.devices()[0], "compute_capability", LEAST_GPU)
    if tuple(map(int, version.split("."))) < tuple(map(int, LEAST_GPU.split("."))):
        return f"this GPU has compute capability {version}, below {LEAST_GPU}"
    value_dim = c.value_dim if c.latent_width else c.head_dim
    shapes = (
        (rows, queries, c.num_heads, c.head_dim),
        (rows, c.num_kv_heads, c.head_dim, slots),
        (rows, c.num_kv_heads, slots, value_dim),
    )
    arrays = [jax.ShapeDtypeStruct(shape, c.dtype) for shape in shapes]
    seen = jax.ShapeDtypeStruct((rows, queries, slots), bool)

    def total(arrays, seen):
        return cudnn_attend(*arrays, seen).astype(jnp.float32).sum()

    try:
        jax.eval_shape(jax.grad(total), arrays, seen)
    except (NotImplementedError, RuntimeError, ValueError) as error:
        return str(error).partition("\n")[0]
    return ""


def warn_of_fallback(reason: str) -> None:
    """Say once, in a warning, that XLA's attention stands in for cuDNN's."""
    logging.log_first_n(
        logging.WARNING,
        "There is no cudnn attention here, xla's is used and takes more memory: %s",
        1,
        reason,
    )


def attend(
    queries: Float[Array, "B T N Q"],
    keys: Float[Array, "B K H S"],
    values: Float[Array, "B K S V"],
    seen: Bool[Array, "B T S"],
    *,
    scale: float | None = None,
) -> Float[Array, "B T N V"]:
    """Compute softmax(q k / sqrt(Q)) v, softmax in float32, keys not repeated.

    The query heads of a group are rows of one matrix product, and keys and values are
    stored in the order in which the products read them. On a CPU this takes 0.7 of the
    time of `jax.nn.dot_product_attention` in training and 0.3 of its time in decoding,
    where the memory layout of the cache dominates.
    """
    batch, time, heads, head_dim = queries.shape
    kv_heads = keys.shape[1]
    group = heads // kv_heads
    queries = queries * (head_dim**-0.5 if scale is None else scale)
    queries = queries.reshape(batch, time, kv_heads, group, head_dim)
    queries = queries.transpose(0, 2, 3, 1, 4)
    queries = queries.reshape(batch, kv_heads, group * time, head_dim)
    scores = _scores(queries, keys, values)
    scores = scores.reshape(batch, kv_heads, group, time, -1)
    scores = jnp.where(seen[:, None, None], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
    weights = weights.reshape(batch, kv_heads, group * time, -1)
    out = jnp.einsum("bkqs,bksh->bkqh", weights, values)
    out = out.reshape(batch, kv_heads, group, time, -1)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, time, heads, -1)


def shared_attend(
    queries: Float[Array, "B T N Q"],
    keys: Float[Array, "B K H S"],
    values: Float[Array, "B K S V"],
    seen: Bool[Array, "B T _"],
    *,
    prompt_keys: Float[Array, "G K H P"],
    prompt_values: Float[Array, "G K P V"],
    scale: float | None = None,
) -> Float[Array, "B T N V"]:
    """Compute `attend` over the slots of a row's prompt and then over the row's own,
    P + S slots.

    B / G rows that are neighbours share a prompt: their queries are rows of one product
    with its keys, which are read once and not repeated.
    """
    batch, time, heads, head_dim = queries.shape
    kv_heads, prompts = keys.shape[1], prompt_keys.shape[0]
    group, share = heads // kv_heads, batch // prompts
    queries = queries * (head_dim**-0.5 if scale is None else scale)
    queries = queries.reshape(batch, time, kv_heads, group, head_dim)
    queries = queries.transpose(0, 2, 3, 1, 4)
    own = queries.reshape(batch, kv_heads, group * time, head_dim)

    def by_row(x):  # [G, K, share * group * T, ...] -> [B, K, group * T, ...]
        x = x.reshape(prompts, kv_heads, share, group * time, -1)
        return x.transpose(0, 2, 1, 3, 4).reshape(batch, kv_heads, group * time, -1)

    def by_prompt(x):  # the inverse
        x = x.reshape(prompts, share, kv_heads, group * time, -1)
        x = x.transpose(0, 2, 1, 3, 4)
        return x.reshape(prompts, kv_heads, share * group * time, -1)

    in_float32 = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    scores = jnp.concatenate(
        [
            by_row(_scores(by_prompt(own), prompt_keys, prompt_values)),
            _scores(own, keys, values),
        ],
        axis=-1,
    )
    scores = scores.reshape(batch, kv_heads, group, time, -1)
    scores = jnp.where(seen[:, None, None], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
    weights = weights.reshape(batch, kv_heads, group * time, -1)
    split = prompt_keys.shape[-1]
    out = by_row(
        in_float32("bkqs,bksh->bkqh", by_prompt(weights[..., :split]), prompt_values)
    ) + in_float32("bkqs,bksh->bkqh", weights[..., split:], values)
    out = out.astype(values.dtype).reshape(batch, kv_heads, group, time, -1)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, time, heads, -1)


def block_attend(
    queries: Float[Array, "B T N Q"],
    keys: Float[Array, "B K H S"],
    values: Float[Array, "B K S V"],
    seen: Bool[Array, "B T S"],
    *,
    possible: Bool[np.ndarray, "T S"],
    scale: float | None = None,
) -> Float[Array, "B T N V"]:
    """Compute `attend` in blocks of queries that read only the keys they may see.

    Args:
        possible: an upper bound of `seen` that is static at compile time: False where
            `seen` is False in every row.
    """
    length = queries.shape[1]
    size = max(SMALLEST_BLOCK, -(-length // MOST_BLOCKS))
    out = []
    for start in range(0, length, size):
        block = slice(start, start + size)
        slots = np.flatnonzero(possible[block].any(0))
        runs = np.split(slots, np.flatnonzero(np.diff(slots) > 1) + 1)

        def cut(x, axis, runs=runs):
            parts = [lax.slice_in_dim(x, r[0], r[-1] + 1, axis=axis) for r in runs]
            return jnp.concatenate(parts, axis)

        out.append(
            attend(
                queries[:, block],
                cut(keys, 3),
                cut(values, 2),
                cut(seen[:, block], 2),
                scale=scale,
            )
        )
    return jnp.concatenate(out, axis=1)


def _scores(
    queries: Float[Array, "B K M Q"],
    keys: Float[Array, "B K H S"],
    values: Float[Array, "B K S V"],
) -> Float[Array, "B K M S"]:
    """Return the products of queries with slots, in float32."""
    in_float32 = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    dims = keys.shape[2]
    if queries.shape[3] == dims:
        return in_float32("bkqh,bkhs->bkqs", queries, keys)
    return in_float32("bkqh,bkhs->bkqs", queries[..., :dims], keys) + in_float32(
        "bkqv,bksv->bkqs", queries[..., dims:], values
    )
