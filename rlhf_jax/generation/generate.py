"""Generation: prefill and a decode loop in one compiled program.

Letters: B batch, P prompt (left-padded), R response (right-padded).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from rlhf_jax.generation.sampling import Sampling, sample
from rlhf_jax.models.chatglm import ChatGLM


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
    lengths: Int[Array, "B"]
    ended: Bool[Array, "B"]


class _Decoding(NamedTuple):
    """The loop's carry. `logits` are for the token that is sampled next."""

    step: Int[Array, ""]
    logits: Float[Array, "B V"]
    cache: Any
    live: Bool[Array, "B"]
    tokens: Int[Array, "B R"]
    mask: Bool[Array, "B R"]
    logprobs: Float[Array, "B R"]
    model_logprobs: Float[Array, "B R"]


def generate(
    model: ChatGLM,
    tokens: Int[Array, "B P"],
    mask: Bool[Array, "B P"],
    key: Key[Array, ""] | Key[Array, "B"],
    sampling: Sampling,
) -> Generation:
    """Answer a batch of left-padded prompts.

    Randomness hangs on the row's key alone: pass one key a row, and a prompt gets the
    same response in whichever batch it stands. A single key is split by row.

    Raises:
        ValueError: prompt and response do not fit the model's context.
    """
    length = tokens.shape[1] + sampling.max_new_tokens
    if length > model.config.context_length:
        raise ValueError(
            f"Prompts of {tokens.shape[1]} tokens and max_new_tokens="
            f"{sampling.max_new_tokens} need a context of {length}; the model has "
            f"{model.config.context_length}."
        )
    if key.ndim == 0:
        rows = jnp.arange(tokens.shape[0])
        key = jax.vmap(jax.random.fold_in, (None, 0))(key, rows)
    return _generate(model, tokens, mask, key, sampling)


@functools.partial(jax.jit, static_argnames="sampling")
def _generate(model, tokens, mask, keys, sampling: Sampling) -> Generation:
    batch, limit = tokens.shape[0], sampling.max_new_tokens
    stop_ids = jnp.array(sampling.stop_ids, jnp.int32)

    def project(hidden):  # [B, D] -> [B, V]
        return jnp.dot(hidden, model.output_matrix, preferred_element_type=jnp.float32)

    def decode_step(s: _Decoding) -> _Decoding:
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, s.step)
        allow_stop = s.step + 1 >= sampling.min_new_tokens
        new = sample(s.logits, step_keys, sampling, allow_stop)
        token = jnp.where(s.live, new.tokens, sampling.pad_id)

        def write(buffer, column):  # one column a step
            return jax.lax.dynamic_update_slice(buffer, column[:, None], (0, s.step))

        hidden, cache = model.decode(token[:, None], s.live[:, None], s.cache)
        return _Decoding(
            step=s.step + 1,
            logits=project(hidden[:, -1]),
            cache=cache,
            live=s.live & ~jnp.isin(token, stop_ids),
            tokens=write(s.tokens, token),
            mask=write(s.mask, s.live),
            logprobs=write(s.logprobs, jnp.where(s.live, new.logprobs, 0.0)),
            model_logprobs=write(
                s.model_logprobs, jnp.where(s.live, new.model_logprobs, 0.0)
            ),
        )

    def unfinished(s: _Decoding):
        return (s.step < limit) & s.live.any()

    hidden, cache = model.decode(
        tokens, mask, model.init_cache(batch, tokens.shape[1] + limit)
    )
    start = _Decoding(
        step=jnp.int32(0),
        logits=project(hidden[:, -1]),
        cache=cache,
        live=jnp.ones(batch, bool),
        tokens=jnp.full((batch, limit), sampling.pad_id, jnp.int32),
        mask=jnp.zeros((batch, limit), bool),
        logprobs=jnp.zeros((batch, limit)),
        model_logprobs=jnp.zeros((batch, limit)),
    )
    end = jax.lax.while_loop(unfinished, decode_step, start)
    return Generation(
        tokens=end.tokens,
        mask=end.mask,
        logprobs=end.logprobs,
        model_logprobs=end.model_logprobs,
        lengths=end.mask.sum(-1, dtype=jnp.int32),
        ended=~end.live,
    )
