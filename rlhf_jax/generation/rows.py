"""Rows that decode side by side: their state, and the compiled programs that change it.

A row holds a response. Rows that are neighbours answer one prompt, whose cache is kept
once for all of them. The tokens of the responses lie in a ring of slots, so that a row
whose response has ended starts with another at once: all rows write into the same slot,
and a row sees its newest slots, as many as its response has tokens.

Letters: B rows, G prompts (B / G rows each), P prompt, S slots of the ring, D width.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.generation.sampling import Sampled, Sampling, sample
from rlhf_jax.models import kv_cache
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.inputs import check_inputs
from rlhf_jax.models.kv_cache import KVCache
from rlhf_jax.parallel.sharding import constrain, decoding


class Rows(NamedTuple):
    """The state of B rows that answer G prompts.

    `hidden` and `prompt_ends` are the hidden states from which a token is drawn: the
    next of each row, and the first of any response to a prompt.
    """

    hidden: Float[Array, "B D"]
    cache: KVCache  # a ring
    live: Bool[Array, " B"]
    number: Int[Array, " B"]  # of the response; its random keys derive from it
    length: Int[Array, " B"]  # tokens of the response so far
    prompts: KVCache
    prompt_ends: Float[Array, "G D"]


class Drawn(NamedTuple):
    """The tokens of a round; `mask` is True where a token belongs to a response, and
    `routing` is that of `ChatGLM.decode`, None unless it was asked for."""

    tokens: Int[Array, "B T"]
    logprobs: Float[Array, "B T"]
    mask: Bool[Array, "B T"]
    routing: Int[Array, "B T L K"] | None = None


for_decoding = jax.jit(ChatGLM.for_decoding)


@functools.partial(jax.jit, static_argnames=("prompts", "share", "width", "slots"))
def empty(model: ChatGLM, *, prompts: int, share: int, width: int, slots: int) -> Rows:
    """Return `share` rows for each of `prompts` prompts of `width` tokens, none of them
    live, in a ring of `slots`."""
    batch = prompts * share
    dim = model.output_matrix.shape[0]
    zeros = jnp.zeros(batch, jnp.int32)
    return lay_out(
        Rows(
            hidden=jnp.zeros((batch, dim), model.config.dtype),
            cache=model.init_cache(batch, slots),
            live=jnp.zeros(batch, bool),
            number=zeros,
            length=zeros,
            prompts=model.init_cache(prompts, width),
            prompt_ends=jnp.zeros((prompts, dim), model.config.dtype),
        )
    )


@functools.partial(jax.jit, donate_argnames="rows")
def read_prompts(
    model: ChatGLM,
    rows: Rows,
    places: Int[Array, " N"],
    tokens: Int[Array, "N P"],
    mask: Bool[Array, "N P"],
) -> tuple[Rows, Int[Array, "N P L K"] | None]:
    """Read N left-padded prompts, in place of those at `places` of the G; a place
    beyond G is left out. Return their routing too (`ChatGLM.decode`)."""
    cache = model.init_cache(*tokens.shape)
    hidden, read, routing = model.decode(tokens, mask, cache)
    if isinstance(rows.cache.keys, tuple):
        read = kv_cache.apart(read)
    rows = rows._replace(
        prompts=kv_cache.replace_rows(rows.prompts, places, read),
        prompt_ends=rows.prompt_ends.at[places].set(hidden[:, -1], mode="drop"),
    )
    return lay_out(rows), routing


@functools.partial(jax.jit, donate_argnames="rows")
def read_responses(
    model: ChatGLM,
    rows: Rows,
    places: Int[Array, " N"],
    numbers: Int[Array, " N"],
    tokens: Int[Array, "N W"],
    mask: Bool[Array, "N W"],
) -> Rows:
    """Read what there is of N responses, left-padded, into the rows at `places`, which
    go on with them; a place beyond B is left out. The ring has W slots or more.

    Args:
        model: `for_decoding` of a model.
        numbers: of the responses.
    """
    share, width = len(rows.live) // len(rows.prompt_ends), tokens.shape[1]
    own = kv_cache.take_rows(rows.prompts, places // share)
    with decoding():
        new = model.init_cache(*tokens.shape)
        hidden, new, _ = model.decode(tokens, mask, new, own)
    ring = rows.cache
    slots = (ring.index - width + jnp.arange(width)) % ring.length

    def put(x: jax.Array, new: jax.Array | bool) -> jax.Array:
        return x.at[places].set(new, mode="drop")

    return lay_out(
        rows._replace(
            hidden=put(rows.hidden, hidden[:, -1]),
            cache=kv_cache.replace_rows(ring, places, new, slots),
            live=put(rows.live, True),
            number=put(rows.number, numbers),
            length=put(rows.length, mask.sum(axis=1)),
        )
    )


@functools.partial(
    jax.jit, static_argnames=("sampling", "steps", "routed"), donate_argnames="rows"
)
def decode_round(
    model: ChatGLM,
    rows: Rows,
    key: jax.Array,
    starts: Bool[Array, " B"],
    numbers: Int[Array, " B"],
    sampling: Sampling,
    *,
    steps: int,
    routed: bool = False,
) -> tuple[Rows, Drawn]:
    """Decode `steps` tokens of every live row, fewer if no row is live any more.

    Args:
        model: `for_decoding` of a model.
        starts: True for rows that start with another response, of this number.
        routed: whether to return the routing of the tokens, of a mixture of experts.
    """
    share = len(rows.live) // len(rows.prompt_ends)
    first = jnp.repeat(rows.prompt_ends, share, axis=0)
    rows = rows._replace(
        hidden=jnp.where(starts[:, None], first, rows.hidden),
        cache=rows.cache._replace(mask=rows.cache.mask & ~starts[:, None]),
        live=rows.live | starts,
        number=jnp.where(starts, numbers, rows.number),
        length=jnp.where(starts, 0, rows.length),
    )
    keys = row_keys(key, rows.number)
    nothing = jnp.zeros((len(rows.live), steps))
    routing = None
    if routed:
        routing = jnp.zeros((*nothing.shape, *model.config.routing_shape), jnp.int16)
    drawn = Drawn(nothing.astype(jnp.int32), nothing, nothing.astype(bool), routing)

    def step(carry: tuple) -> tuple:
        i, rows, drawn = carry
        logits = project(model, rows.hidden)
        new, token, stops = draw(logits, keys, rows.length, rows.live, sampling)
        hidden, cache, routing = model.decode(
            token[:, None], rows.live[:, None], rows.cache, rows.prompts
        )
        column = Drawn(
            tokens=token,
            logprobs=jnp.where(rows.live, new.logprobs, 0.0),
            mask=rows.live,
            routing=routing[:, 0] if routed and routing is not None else None,
        )
        drawn = jax.tree.map(
            lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y, i, 1), drawn, column
        )
        length = rows.length + rows.live
        goes_on = rows.live & ~stops & (length < sampling.max_new_tokens)
        rows = rows._replace(
            hidden=hidden[:, 0], cache=cache, live=goes_on, length=length
        )
        return i + 1, rows, drawn

    with decoding():
        _, rows, drawn = jax.lax.while_loop(
            lambda carry: (carry[0] < steps) & carry[1].live.any(),
            step,
            (jnp.int32(0), rows, drawn),
        )
    return lay_out(rows), drawn


@functools.partial(jax.jit, static_argnames="slots")
def resize(
    rows: Rows,
    takes: Int[Array, " B2"],
    prompts: Int[Array, " G2"],
    *,
    slots: int,
) -> Rows:
    """Return B2 rows for G2 prompts, in a ring of `slots`.

    Args:
        takes: which of the rows each new row is; B for one that is not live.
        prompts: which of the prompts each new prompt is.
    """
    is_there = takes < len(rows.live)
    takes = jnp.minimum(takes, len(rows.live) - 1)
    return lay_out(
        Rows(
            hidden=rows.hidden[takes],
            cache=kv_cache.resize_ring(kv_cache.take_rows(rows.cache, takes), slots),
            live=rows.live[takes] & is_there,
            number=rows.number[takes],
            length=rows.length[takes],
            prompts=kv_cache.take_rows(rows.prompts, prompts),
            prompt_ends=rows.prompt_ends[prompts],
        )
    )


def draw(
    logits: Float[Array, "B V"],
    keys: jax.Array,
    step: Int[Array, " B"],
    live: Bool[Array, " B"],
    sampling: Sampling,
) -> tuple[Sampled, Int[Array, " B"], Bool[Array, " B"]]:
    """Draw a token for every live row.

    Args:
        keys: a key for each row, [B].
        step: the number of tokens in each response so far.

    Returns:
        The samples; the tokens [B], padding where a row is not live; and bool [B],
        whether the token ends its response.
    """
    keys = jax.vmap(jax.random.fold_in)(keys, step)
    new = sample(logits, keys, sampling, step + 1 >= sampling.min_new_tokens)
    token = jnp.where(live, new.tokens, sampling.pad_id)
    return new, token, jnp.isin(token, jnp.array(sampling.stop_ids, jnp.int32))


def row_keys(key: jax.Array, number: jax.Array) -> jax.Array:
    """Derive one key a response from the response's number: [B] -> keys [B]."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, number)


def project(model: ChatGLM, hidden: Float[Array, "B D"]) -> Float[Array, "B V"]:
    """Return float32 logits [B, V] of hidden states [B, D]."""
    matrix = model.output_matrix
    logits = jnp.dot(hidden, matrix, preferred_element_type=jnp.float32)
    return constrain(constrain(logits, "rows", "vocab"), "batch", "tokens")


def check_prompts(
    model: ChatGLM,
    tokens: Int[np.ndarray, "N P"],
    mask: Bool[np.ndarray, "N P"],
    sampling: Sampling,
) -> None:
    """Refuse prompts that cannot be answered.

    Raises:
        ValueError: prompt and response do not fit the model's context, or
            `check_inputs` refuses the prompts.
    """
    length = tokens.shape[1] + sampling.max_new_tokens
    if length > model.config.context_length:
        raise ValueError(
            f"Prompts of {tokens.shape[1]} tokens and max_new_tokens="
            f"{sampling.max_new_tokens} need a context of {length}; the model has "
            f"{model.config.context_length}."
        )
    check_inputs(tokens, mask, model.config)


def lay_out(rows: Rows) -> Rows:
    """Shard the rows over the devices by `constrain`, alike after every program."""

    def cached(x: jax.Array, *names: str) -> jax.Array:
        return constrain(x, *["layers"] * (x.ndim - 4), "batch", "kv_heads", *names)

    def by_row(x: jax.Array) -> jax.Array:
        return constrain(x, "batch", *["slots"] * (x.ndim - 1))

    def of_cache(cache: KVCache) -> KVCache:
        return cache._replace(
            keys=jax.tree.map(lambda x: cached(x, "head_dim", "slots"), cache.keys),
            values=jax.tree.map(lambda x: cached(x, "slots", "head_dim"), cache.values),
            mask=by_row(cache.mask),
            context=by_row(cache.context),
            mask_place=by_row(cache.mask_place),
        )

    return Rows(
        hidden=by_row(rows.hidden),
        cache=of_cache(rows.cache),
        live=by_row(rows.live),
        number=by_row(rows.number),
        length=by_row(rows.length),
        prompts=of_cache(rows.prompts),
        prompt_ends=by_row(rows.prompt_ends),
    )
