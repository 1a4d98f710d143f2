"""Positions of tokens, counted from the mask, so that padding has no effect.

A token's position is the number of real tokens it can see strictly before it. With
`segments`, several responses share one prompt in one row: segment 0 is the prompt,
segments 1, 2, ... are responses one after another, and the positions of each response
start again at the prompt's end. With `examples`, a row holds several examples, each a
text or a prompt with its responses, one after another and numbered from 0; no token
sees another example, and positions start again at 0 in each.

ChatGLM-6B has a prefix mask and two positions. The context is the c tokens before the
start token <sop>; every token sees the whole context. m is the place in the context of
[gMASK], else of [MASK], which marks where the generated text belongs. Context tokens
have positions (p, 0), the others (m, p - c + 1).
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def count_before(
    mask: Bool[Array, "B T"],
    segments: Int[Array, "B T"] | None = None,
    examples: Int[Array, "B T"] | None = None,
) -> Int[Array, "B T"]:
    """Count the real tokens that each token sees before itself, in linear time."""
    new_example = jnp.zeros(mask.shape, bool) if examples is None else _starts(examples)
    if segments is None:
        return _count_since(new_example, mask)
    in_prompt = segments == 0
    own = _count_since(new_example | _starts(segments), mask & ~in_prompt)
    in_prompts = _count_since(new_example, mask & in_prompt)
    return in_prompts + jnp.where(in_prompt, 0, own)


def prefix(
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    places: Int[Array, "B T"],
    segments: Int[Array, "B T"] | None,
    examples: Int[Array, "B T"] | None = None,
    *,
    start_token: int,
    mask_tokens: tuple[int, ...],
) -> tuple[Int[Array, "B ..."], Int[Array, "B ..."]]:
    """Return the context's length c and the mask token's place m of each row [B]; with
    `examples` those of each token's example [B, T].

    Args:
        places: `count_before` of each token.
        mask_tokens: [gMASK] and [MASK], the preferred one first.

    Rows are those of ChatGLM-6B. A row without a start token has no context (c = 0) and
    is causal throughout.
    """
    if segments is not None:
        mask = mask & (segments == 0)
    nowhere = jnp.iinfo(jnp.int32).max

    def first_place(is_match):
        place = jnp.where(is_match, places, nowhere)
        if examples is None:
            return place.min(axis=1)
        least = functools.partial(jax.ops.segment_min, num_segments=place.shape[1])
        return jnp.take_along_axis(jax.vmap(least)(place, examples), examples, axis=1)

    context = first_place(mask & (tokens == start_token))
    context = jnp.where(context == nowhere, 0, context)
    mask_place = jnp.maximum(context - 1, 0)
    for token in reversed(mask_tokens):
        in_context = mask & (places < by_token(context))
        place = first_place(in_context & (tokens == token))
        mask_place = jnp.where(place == nowhere, mask_place, place)
    return context, mask_place


def two_axes(
    places: Int[Array, "B T"],
    context: Int[Array, "B ..."],
    mask_place: Int[Array, "B ..."],
) -> Int[Array, "B T 2"]:
    """Return the two positions of each token of ChatGLM-6B."""
    beyond = places - by_token(context) + 1
    in_context = beyond <= 0
    first = jnp.where(in_context, places, by_token(mask_place))
    return jnp.stack([first, jnp.maximum(beyond, 0)], axis=-1)


def by_token(x: Int[Array, "B ..."]) -> Int[Array, "B ..."]:
    """Return what `prefix` returns with an axis of tokens, of size 1 for rows."""
    return x[:, None] if x.ndim == 1 else x


def _starts(x: Int[Array, "B T"]) -> Bool[Array, "B T"]:
    """Return True where a number differs from that of the token before."""
    return jnp.pad(x[:, 1:] != x[:, :-1], ((0, 0), (1, 0)))


def _count_since(starts: Bool[Array, "B T"], x: Bool[Array, "B T"]):
    """Count the True values of x before each token, from the last start on."""
    x = x.astype(jnp.int32)
    before = jnp.cumsum(x, axis=1) - x
    # Counts never fall, so the count at the last start is the largest so far.
    return before - jax.lax.cummax(jnp.where(starts, before, 0), axis=1)
