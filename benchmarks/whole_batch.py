"""Sampling as it was before rows took turns: every row runs to the longest, and a
prompt is read once for each of its responses. Benchmarks compare with it.

Letters: B batch, P prompt (left-padded), R response (right-padded).
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from rlhf_jax.generation.sampling import Sampling, sample
from rlhf_jax.models import kv_cache
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.inputs import check_inputs
from rlhf_jax.models.kv_cache import KVCache
from rlhf_jax.parallel.sharding import constrain, decoding

# The cache grows at most so many times, each time by SHORTEST_GROWTH tokens or more.
SHORTEST_GROWTH, MOST_GROWTHS, MOST_GROWTHS_APART = 32, 4, 2


class Generation(NamedTuple):
    """Responses, right-padded. The mask includes the end token.

    `logprobs` are under the distribution sampled from, `model_logprobs` under the
    plain model; both are 0 where the mask is False. `ended` is True where a response
    stopped by itself, False where it was cut at the length limit.
    """

    tokens: Int[Array, "B R"]
    mask: Bool[Array, "B R"]
    logprobs: Float[Array, "B R"]
    model_logprobs: Float[Array, "B R"]
    lengths: Int[Array, " B"]
    ended: Bool[Array, " B"]


class Decoding(NamedTuple):
    """The state of the decode loop. `logits` are those of the token sampled next."""

    step: Int[Array, ""]
    logits: Float[Array, "B V"]
    cache: KVCache
    live: Bool[Array, " B"]
    tokens: Int[Array, "B R"]
    mask: Bool[Array, "B R"]
    logprobs: Float[Array, "B R"]
    model_logprobs: Float[Array, "B R"]


def generate(
    model: ChatGLM,
    tokens: Int[Array | np.ndarray, "B P"],
    mask: Bool[Array | np.ndarray, "B P"],
    key: Key[Array, ""] | Key[Array, " B"],
    sampling: Sampling,
) -> Generation:
    """Answer a batch of left-padded prompts.

    A response depends on its row's key alone: with one key a row, a prompt gets the
    same response in whichever batch it stands. A single key is split by row.

    The host checks the prompts before anything is compiled, which takes some tens of
    microseconds. Traced prompts, inside a `jit`, are not checked.

    Raises:
        ValueError: prompt and response do not fit the model's context, or
            `check_inputs` refuses the prompts.
    """
    check_prompts(model, tokens, mask, sampling)
    return generate_program(
        model, tokens, mask, split_by_row(key, len(tokens)), sampling
    )


@functools.partial(jax.jit, static_argnames="sampling")
def generate_program(model, tokens, mask, keys, sampling: Sampling) -> Generation:
    """Generate as `generate` does, without checks: prefill and decode loop, compiled.

    Args:
        keys: one key a row, [B].
    """
    end = prefill(model, tokens, mask, sampling, slots=0)
    model = model.for_decoding()
    if not model.config.scan_layers:
        end = end._replace(cache=kv_cache.apart(end.cache))
    sizes = growth(sampling.max_new_tokens, stacked=model.config.scan_layers)
    with decoding():
        for first, full in itertools.pairwise([0, *sizes]):
            end = jax.lax.while_loop(
                lambda s, full=full: (s.step < full) & s.live.any(),
                lambda s: decode_step(model, s, keys, sampling),
                end._replace(cache=kv_cache.lengthen(end.cache, full - first)),
            )
    return Generation(
        tokens=end.tokens,
        mask=end.mask,
        logprobs=end.logprobs,
        model_logprobs=end.model_logprobs,
        lengths=end.mask.sum(-1, dtype=jnp.int32),
        ended=~end.live,
    )


def growth(limit: int, *, stacked: bool) -> list[int]:
    """Return the numbers of new tokens that the cache has room for, one size after the
    other. A step reads the whole cache, so the cache grows with the responses; every
    size is a loop of its own to compile.

    Args:
        limit: the largest number of new tokens.
        stacked: whether a step loops over its layers, which compiles one of them.
    """
    most = MOST_GROWTHS if stacked else MOST_GROWTHS_APART
    parts = min(max(limit // SHORTEST_GROWTH, 1), most)
    return [limit * (part + 1) // parts for part in range(parts)]


def prefill(
    model: ChatGLM, tokens, mask, sampling: Sampling, *, slots: int
) -> Decoding:
    """Read the prompts [B, P]; return the state before the first step, whose cache has
    room for `slots` new tokens."""
    batch, limit = tokens.shape[0], sampling.max_new_tokens
    hidden, cache, _ = model.decode(tokens, mask, model.init_cache(*tokens.shape))
    return Decoding(
        step=jnp.int32(0),
        logits=project(model, hidden[:, -1]),
        cache=kv_cache.lengthen(cache, slots),
        live=jnp.ones(batch, bool),
        tokens=jnp.full((batch, limit), sampling.pad_id, jnp.int32),
        mask=jnp.zeros((batch, limit), bool),
        logprobs=jnp.zeros((batch, limit)),
        model_logprobs=jnp.zeros((batch, limit)),
    )


def decode_step(model: ChatGLM, s: Decoding, keys, sampling: Sampling) -> Decoding:
    """Sample a token for every live row with the keys [B], and feed it to the model."""
    new, token, stops = draw(s.logits, keys, s.step, s.live, sampling)

    def write(buffer, column):  # one column a step
        return jax.lax.dynamic_update_slice(buffer, column[:, None], (0, s.step))

    hidden, cache, _ = model.decode(token[:, None], s.live[:, None], s.cache)
    return Decoding(
        step=s.step + 1,
        logits=project(model, hidden[:, -1]),
        cache=cache,
        live=s.live & ~stops,
        tokens=write(s.tokens, token),
        mask=write(s.mask, s.live),
        logprobs=write(s.logprobs, jnp.where(s.live, new.logprobs, 0.0)),
        model_logprobs=write(
            s.model_logprobs, jnp.where(s.live, new.model_logprobs, 0.0)
        ),
    )


def draw(logits, keys, step, live, sampling: Sampling):
    """Draw a token for every live row.

    Args:
        logits, keys, live: [B, V], [B] and [B].
        step: the number of tokens in the response so far: of all rows, or of each [B].

    Returns:
        The samples; the tokens [B], padding where a row is not live; and bool [B],
        whether the token ends its response.
    """
    step = jnp.broadcast_to(step, live.shape)
    keys = jax.vmap(jax.random.fold_in)(keys, step)
    new = sample(logits, keys, sampling, step + 1 >= sampling.min_new_tokens)
    token = jnp.where(live, new.tokens, sampling.pad_id)
    return new, token, jnp.isin(token, jnp.array(sampling.stop_ids, jnp.int32))


def check_prompts(model: ChatGLM, tokens, mask, sampling: Sampling) -> None:
    """Raise the ValueErrors of `generate`."""
    length = tokens.shape[1] + sampling.max_new_tokens
    if length > model.config.context_length:
        raise ValueError(
            f"Prompts of {tokens.shape[1]} tokens and max_new_tokens="
            f"{sampling.max_new_tokens} need a context of {length}; the model has "
            f"{model.config.context_length}."
        )
    # Traced values and rows on other hosts cannot be read here.
    if not any(isinstance(x, jax.core.Tracer) for x in (tokens, mask)) and all(
        getattr(x, "is_fully_addressable", True) for x in (tokens, mask)
    ):
        check_inputs(np.asarray(tokens), np.asarray(mask), model.config)


def split_by_row(key: Key[Array, ""] | Key[Array, " B"], rows: int) -> Key[Array, " B"]:
    """Return one key a row: the given ones, or a single key split."""
    if key.ndim:
        return key
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))


def project(model: ChatGLM, hidden):
    """Return float32 logits [B, V] of hidden states [B, D]."""
    matrix = model.output_matrix
    logits = jnp.dot(hidden, matrix, preferred_element_type=jnp.float32)
    return constrain(constrain(logits, "rows", "vocab"), "batch", "tokens")
