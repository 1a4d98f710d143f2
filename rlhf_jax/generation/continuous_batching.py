"""Continuous batching: responses to many prompts through few rows. When a response has
ended, the next prompt takes its row.

Rows decode a round of STEPS tokens at a time. Before each round, free rows are assigned
to the next prompts of the queue. Three programs are compiled, for empty rows, for
reading prompts and for a round, whatever the number of prompts and the lengths of their
responses.

The cache has room for a prompt, a response and a round. All rows write into the same
slot; after a round the whole cache moves to the front by STEPS slots, and the slots
dropped there belong to no unfinished response.

Letters: B rows, G rows that are assigned together, P prompt, V vocabulary.
"""

import functools
from collections import deque
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.generation.generate import check_prompts, draw, project
from rlhf_jax.generation.rollout import row_keys
from rlhf_jax.generation.sampling import Sampling
from rlhf_jax.models import kv_cache
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.kv_cache import KVCache
from rlhf_jax.parallel.sharding import constrain, decoding, fetch, shard_batch

STEPS = 16  # tokens per row that a round decodes
# Rows are assigned in groups of a quarter of the batch: the prefill of a smaller group
# takes as long.
GROUPS = 4


class Rows(NamedTuple):
    """The state carried from round to round; `logits` are those of the next token."""

    logits: Float[Array, "B V"]
    cache: KVCache
    live: Bool[Array, " B"]
    index: Int[Array, " B"]  # positions of the prompts
    length: Int[Array, " B"]  # tokens of the responses so far


def sample_groups(
    model: ChatGLM,
    prompts: list[list[int]],
    key: jax.Array,
    sampling: Sampling,
    *,
    count: int,
    batch_size: int,
) -> list[list[list[int]]]:
    """Sample `count` responses to each prompt; see `sample_responses`."""
    repeated = [prompt for prompt in prompts for _ in range(count)]
    flat = sample_responses(model, repeated, key, sampling, batch_size=batch_size)
    return [flat[i : i + count] for i in range(0, len(flat), count)]


def sample_responses(
    model: ChatGLM,
    prompts: list[list[int]],
    key: jax.Array,
    sampling: Sampling,
    *,
    batch_size: int,
) -> list[list[int]]:
    """Sample one response to each prompt, as token ids without padding: the responses
    of `generate` with the keys `row_keys(key, position of the prompt)`. A response that
    ended includes its stop token; one cut at `sampling.max_new_tokens` has none.

    Args:
        batch_size: the number of rows that decode side by side.

    Raises:
        ValueError: see `generate`.
    """
    if not prompts:
        return []
    tokens, mask = _pad_prompts(prompts, sampling.pad_id)
    check_prompts(model, tokens, mask, sampling)
    group = -(-batch_size // GROUPS)
    decoder = _for_decoding(model)
    live = np.zeros(batch_size, bool)
    rows = _make_rows(decoder, shard_batch(live), sampling, width=tokens.shape[1])
    responses = [[] for _ in prompts]
    answering = np.zeros(batch_size, int)  # the position of each row's prompt
    queue = deque(range(len(prompts)))
    while queue or live.any():
        while queue and (~live).sum() >= min(group, len(queue)):
            index = [queue.popleft() for _ in range(min(group, len(queue)))]
            free = np.flatnonzero(~live)[: len(index)]
            answering[free], live[free] = index, True
            # A smaller group has the same shape: its padding is assigned to no row.
            rest = group - len(index)
            index = np.pad(index, (0, rest), mode="edge")
            free = np.pad(free, (0, rest), constant_values=batch_size)
            rows = _prefill_rows(
                model, rows, free, index, tokens[index], mask[index], sampling
            )
        rows, drawn, real = _decode_round(decoder, rows, key, sampling)
        drawn, real, live = fetch((drawn, real, rows.live))
        for row in np.flatnonzero(real.any(axis=1)):
            responses[answering[row]] += drawn[row, real[row]].tolist()
        live = live.copy()  # fetched arrays are read-only
    return responses


def _pad_prompts(prompts: list[list[int]], pad_id: int):
    """Return left-padded tokens and their mask: [N, P]."""
    width = -(-max(map(len, prompts)) // 8) * 8
    tokens = np.full((len(prompts), width), pad_id, np.int32)
    mask = np.zeros((len(prompts), width), bool)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = True
    return tokens, mask


_for_decoding = jax.jit(ChatGLM.for_decoding)


@functools.partial(jax.jit, static_argnames=("sampling", "width"))
def _make_rows(model: ChatGLM, live, sampling: Sampling, *, width: int) -> Rows:
    """Return B rows without a prompt, none of them live."""
    batch, before = len(live), sampling.max_new_tokens + width
    cache = model.init_cache(batch, before + STEPS)
    return _constrain(
        Rows(
            logits=jnp.zeros((batch, model.output_matrix.shape[1])),
            cache=cache._replace(index=jnp.int32(before)),
            live=live,
            index=jnp.zeros(batch, jnp.int32),
            length=jnp.zeros(batch, jnp.int32),
        )
    )


@functools.partial(jax.jit, static_argnames="sampling", donate_argnames="rows")
def _prefill_rows(
    model: ChatGLM, rows: Rows, free, index, tokens, mask, sampling: Sampling
) -> Rows:
    """Read prompts [G, P], at positions `index` [G] of the queue, into free rows
    [G]."""
    hidden, read = model.decode(tokens, mask, model.init_cache(*tokens.shape))
    if isinstance(rows.cache.keys, tuple):
        read = kv_cache.apart(read)
    cache = kv_cache.replace_rows(rows.cache, free, read, slot=sampling.max_new_tokens)

    def put(x, new):
        return x.at[free].set(new, mode="drop")

    return _constrain(
        Rows(
            logits=put(rows.logits, project(model, hidden[:, -1])),
            cache=cache,
            live=put(rows.live, True),
            index=put(rows.index, index),
            length=put(rows.length, 0),
        )
    )


@functools.partial(jax.jit, static_argnames="sampling", donate_argnames="rows")
def _decode_round(model: ChatGLM, rows: Rows, key, sampling: Sampling):
    """Decode STEPS tokens of every row, [B, STEPS]; return the tokens and the mask of
    those that belong to a response."""
    keys = row_keys(key, rows.index)

    def step(rows, _):
        _, token, stops = draw(rows.logits, keys, rows.length, rows.live, sampling)
        hidden, cache = model.decode(token[:, None], rows.live[:, None], rows.cache)
        length = rows.length + rows.live
        goes_on = rows.live & ~stops & (length < sampling.max_new_tokens)
        new = Rows(project(model, hidden[:, -1]), cache, goes_on, rows.index, length)
        return new, (token, rows.live)

    with decoding():
        rows, (tokens, real) = jax.lax.scan(step, rows, length=STEPS)
    rows = rows._replace(cache=kv_cache.shift(rows.cache, STEPS))
    return _constrain(rows), tokens.T, real.T


def _constrain(rows: Rows) -> Rows:
    """Shard the rows over the devices by `constrain`, alike after every program."""

    def cached(x, *names):
        return constrain(x, *["layers"] * (x.ndim - 4), "batch", "kv_heads", *names)

    def by_row(x):
        return constrain(x, "batch", *["slots"] * (x.ndim - 1))

    cache = rows.cache
    cache = cache._replace(
        keys=jax.tree.map(lambda x: cached(x, "head_dim", "slots"), cache.keys),
        values=jax.tree.map(lambda x: cached(x, "slots", "head_dim"), cache.values),
        mask=by_row(cache.mask),
        context=by_row(cache.context),
        mask_place=by_row(cache.mask_place),
    )
    return Rows(
        logits=constrain(rows.logits, "batch", "tokens"),
        cache=cache,
        live=by_row(rows.live),
        index=by_row(rows.index),
        length=by_row(rows.length),
    )
