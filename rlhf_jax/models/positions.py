"""Positions of tokens, counted from the mask, so that padding has no effect.

A token's position is the number of real tokens it can see strictly before it. With
`segments`, several responses share one prompt in one row: segment 0 is the prompt,
segments 1, 2, ... are responses one after another, and the positions of each response
start again at the prompt's end.

ChatGLM-6B has a prefix mask and two positions. The context is the c tokens before the
start token <sop>; every token sees the whole context. m is the place in the context of
[gMASK], else of [MASK], which marks where the generated text belongs. Context tokens
have positions (p, 0), the others (m, p - c + 1).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def count_before(
    mask: Bool[Array, "B T"], segments: Int[Array, "B T"] | None = None
) -> Int[Array, "B T"]:
    """Count the real tokens that each token sees before itself, in linear time."""
    if segments is None:
        return _exclusive_cumsum(mask)
    in_prompt = segments == 0
    in_response = _exclusive_cumsum(mask & ~in_prompt)
    first = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)))
    # Counts never fall, so the count at the last segment start is the largest so far.
    at_start = jax.lax.cummax(jnp.where(first, in_response, 0), axis=1)
    own = jnp.where(in_prompt, 0, in_response - at_start)
    return _exclusive_cumsum(mask & in_prompt) + own


def prefix(
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    places: Int[Array, "B T"],
    segments: Int[Array, "B T"] | None,
    *,
    start_token: int,
    mask_tokens: tuple[int, ...],
) -> tuple[Int[Array, " B"], Int[Array, " B"]]:
    """Return the context's length c and the mask token's place m of each row.

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
        return jnp.where(is_match, places, nowhere).min(axis=1)

    context = first_place(mask & (tokens == start_token))
    context = jnp.where(context == nowhere, 0, context)
    mask_place = jnp.maximum(context - 1, 0)
    for token in reversed(mask_tokens):
        in_context = mask & (places < context[:, None])
        place = first_place(in_context & (tokens == token))
        mask_place = jnp.where(place == nowhere, mask_place, place)
    return context, mask_place


def two_axes(
    places: Int[Array, "B T"],
    context: Int[Array, " B"],
    mask_place: Int[Array, " B"],
) -> Int[Array, "B T 2"]:
    """Return the two positions of each token of ChatGLM-6B."""
    beyond = places - context[:, None] + 1
    in_context = beyond <= 0
    first = jnp.where(in_context, places, mask_place[:, None])
    return jnp.stack([first, jnp.maximum(beyond, 0)], axis=-1)


def _exclusive_cumsum(x: Bool[Array, "B T"]) -> Int[Array, "B T"]:
    x = x.astype(jnp.int32)
    return jnp.cumsum(x, axis=1) - x
