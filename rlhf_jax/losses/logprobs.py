"""Log-probabilities of tokens from hidden states; the shift by one is made here.

The state at position t predicts the token at t + 1. Every result of this file is
aligned with tokens instead: index t belongs to token t and to the state before that
token. The logits [B, T, V] are never held at once: they are projected `chunk_size`
positions at a time, and again in the backward pass.

Letters: B batch, T tokens, P prompt, K responses, R response, V vocab, D width.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, Int

# The logit of a padding column: finite, so that 0 (its probability) times it is 0.
MASKED = -1e30


class TokenLogprobs(NamedTuple):
    logprobs: Float[Array, "*B T"]  # of each token, given the tokens before it
    entropy: Float[Array, "*B T"]  # of the distribution that predicts the token, nats


def next_token_logprobs(
    hidden: Float[Array, "B T D"],
    output_matrix: Float[Array, "D V"],
    tokens: Int[Array, "B T"],
    *,
    temperature: float,
    num_tokens: int,
    chunk_size: int,
) -> TokenLogprobs:
    """Compute log p(tokens[t] | tokens[:t]) and the entropy of that distribution.

    p = softmax(hidden[t - 1] @ output_matrix[:, :num_tokens] / temperature).

    Index 0, which nothing predicts, is 0 in both. Vocabulary columns from
    `num_tokens` on are padding and have probability 0. `chunk_size` positions of every
    row are projected at a time (0: all at once). The product takes inputs in the
    dtype of `hidden` and accumulates in float32; the gradient of `output_matrix`
    accumulates over chunks in the dtype of `output_matrix`. Token ids outside the
    vocabulary (padding) give a finite number without meaning.
    """
    out = _project(
        hidden[:, :-1],
        output_matrix,
        tokens[:, 1:],
        temperature=temperature,
        num_tokens=num_tokens,
        chunk_size=chunk_size,
    )
    return TokenLogprobs(*(jnp.pad(x, ((0, 0), (1, 0))) for x in out))


def target_logprobs(
    hidden: Float[Array, "B T D"],
    output_matrix: Float[Array, "D V"],
    tokens: Int[Array, "B T"],
    targets: Int[Array, "B M"],
    before: Int[Array, "B M"],
    *,
    temperature: float,
    num_tokens: int,
    chunk_size: int,
) -> TokenLogprobs:
    """Compute log-probabilities and entropies [B, M] of some tokens of packed rows, and
    project only the states before these to the vocabulary.

    Args:
        targets: the positions of these tokens.
        before: the position of the state before each, in the same example; where it is
            out of the row, the result is without meaning.

    See `next_token_logprobs` for the other arguments.
    """
    return _project(
        jnp.take_along_axis(hidden, before[..., None], axis=1, mode="clip"),
        output_matrix,
        jnp.take_along_axis(tokens, targets, axis=1, mode="clip"),
        temperature=temperature,
        num_tokens=num_tokens,
        chunk_size=chunk_size,
    )


def packed_response_logprobs(
    hidden: Float[Array, "B T D"],
    output_matrix: Float[Array, "D V"],
    responses: Int[Array, "B K R"],
    *,
    prompt_length: int,
    temperature: float,
    num_tokens: int,
    chunk_size: int,
) -> TokenLogprobs:
    """Compute log-probabilities and entropies [B, K, R] of K responses to one prompt.

    Rows are packed as [prompt P | response 1 R | ... | response K R], T = P + K R. Only
    response positions are projected to the vocabulary; see `next_token_logprobs` for
    the other arguments.

    Raises:
        ValueError: `hidden` has another number of positions than P + K R.
    """
    num_responses, response_length = responses.shape[1:]
    expected = prompt_length + num_responses * response_length
    if hidden.shape[1] != expected:
        raise ValueError(
            f"hidden has {hidden.shape[1]} positions, but {prompt_length=} and "
            f"{num_responses=} of {response_length=} make {expected}."
        )
    return _project(
        response_hidden(
            hidden, prompt_length=prompt_length, num_responses=num_responses
        ),
        output_matrix,
        responses,
        temperature=temperature,
        num_tokens=num_tokens,
        chunk_size=chunk_size,
    )


def response_hidden(
    hidden: Float[Array, "B T D"], *, prompt_length: int, num_responses: int
) -> Float[Array, "B K R D"]:
    """Pick the state before each response token.

    Token 0 of every response follows the prompt's last token, at P - 1 (prompts are
    left-padded); token r follows token r - 1 of the same response. The values of a
    value model are read at the same states: index r is the value of the state before
    token r.
    """
    batch_size, length, width = hidden.shape
    if prompt_length < 1:
        raise ValueError(
            f"{prompt_length=}: nothing predicts the first token; it must be 1 or more."
        )
    if (length - prompt_length) % num_responses or length <= prompt_length:
        raise ValueError(
            f"{length - prompt_length} positions after {prompt_length=} cannot be "
            f"split into {num_responses=} of equal length."
        )
    responses = hidden[:, prompt_length:].reshape(batch_size, num_responses, -1, width)
    prompt_end = jnp.broadcast_to(
        hidden[:, None, None, prompt_length - 1], (batch_size, num_responses, 1, width)
    )
    return jnp.concatenate([prompt_end, responses[:, :, :-1]], axis=2)


def _project(hidden, output_matrix, tokens, *, temperature, num_tokens, chunk_size):
    """Compute log-probabilities and entropies [*N, T] of tokens from the states before
    the tokens.

    Chunks are cut from the time axis, so the sharding of the batch does not change.
    """
    if not temperature > 0:
        raise ValueError(f"{temperature=} must be positive.")
    if not 0 < num_tokens <= output_matrix.shape[1]:
        raise ValueError(f"{num_tokens=}, but {output_matrix.shape=} is [D, V].")

    def project_chunk(hidden, tokens):
        return _token_logprobs(hidden, output_matrix, tokens, temperature, num_tokens)

    length = tokens.shape[-1]
    if chunk_size == 0 or length <= chunk_size:
        return project_chunk(hidden, tokens)
    num_chunks = -(-length // chunk_size)
    padding = num_chunks * chunk_size - length
    batch_axes = [(0, 0)] * (tokens.ndim - 1)
    hidden = jnp.pad(hidden, [*batch_axes, (0, padding), (0, 0)])
    tokens = jnp.pad(tokens, [*batch_axes, (0, padding)])
    axis = tokens.ndim - 1
    hidden = hidden.reshape(*tokens.shape[:-1], num_chunks, chunk_size, -1)
    tokens = tokens.reshape(*tokens.shape[:-1], num_chunks, chunk_size)
    chunks = jnp.moveaxis(hidden, axis, 0), jnp.moveaxis(tokens, axis, 0)
    out = lax.map(lambda chunk: project_chunk(*chunk), chunks)  # [chunks, *N, size]
    out = [jnp.moveaxis(x, 0, axis) for x in out]
    out = [x.reshape(*x.shape[:-2], -1)[..., :length] for x in out]
    return TokenLogprobs(*out)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _token_logprobs(hidden, output_matrix, tokens, temperature, num_tokens):
    """Project one chunk. The backward pass projects again: only [*N, T] arrays are
    kept."""
    return _measure(hidden, output_matrix, tokens, temperature, num_tokens)[0]


def _forward(hidden, output_matrix, tokens, temperature, num_tokens):
    arguments = hidden.value, output_matrix.value, tokens.value
    out, log_normaliser = _measure(*arguments, temperature, num_tokens)
    return out, (*arguments, log_normaliser)


def _measure(hidden, output_matrix, tokens, temperature, num_tokens):
    logits, ids = _logits(hidden, output_matrix, temperature, num_tokens)
    # Compare and sum rather than gather: both stay local when the vocabulary is
    # sharded over devices.
    chosen = jnp.sum(jnp.where(ids == tokens[..., None], logits, 0.0), axis=-1)
    log_normaliser = jax.nn.logsumexp(logits, axis=-1)
    probs = jnp.exp(logits - log_normaliser[..., None])
    mean_logit = jnp.sum(probs * logits, axis=-1)
    out = TokenLogprobs(chosen - log_normaliser, log_normaliser - mean_logit)
    return out, log_normaliser


def _backward(temperature, num_tokens, residuals, gradients):
    """Differentiate one chunk; automatic differentiation would take twice the time.

    d logprob / d logit_v = [v = token] - p_v
    d entropy / d logit_v = -p_v (log p_v + entropy)

    An output that no loss reads has a symbolic zero as its gradient and costs nothing.
    """
    hidden, output_matrix, tokens, log_normaliser = residuals
    logits, ids = _logits(hidden, output_matrix, temperature, num_tokens)
    logprobs = logits - log_normaliser[..., None]
    probs = jnp.exp(logprobs)
    d_logits = jnp.zeros((1,) * logits.ndim)
    if not isinstance(gradients.logprobs, SymbolicZero):
        is_token = jnp.where(ids == tokens[..., None], 1.0, 0.0)
        d_logits += gradients.logprobs[..., None] * (is_token - probs)
    if not isinstance(gradients.entropy, SymbolicZero):
        surprise = probs * logprobs
        entropy = -jnp.sum(surprise, axis=-1, keepdims=True)
        d_logits -= gradients.entropy[..., None] * (surprise + probs * entropy)
    d_logits = (d_logits / temperature).astype(hidden.dtype)
    d_hidden = jnp.einsum(
        "...v,dv->...d",
        d_logits,
        output_matrix.astype(hidden.dtype),
        preferred_element_type=jnp.float32,
    )
    d_matrix = jnp.einsum(
        "...d,...v->dv", hidden, d_logits, preferred_element_type=jnp.float32
    )
    return d_hidden.astype(hidden.dtype), d_matrix.astype(output_matrix.dtype), None


_token_logprobs.defvjp(_forward, _backward, symbolic_zeros=True)


def _logits(hidden, output_matrix, temperature, num_tokens):
    """Compute logits [*N, T, V], float32, effectively -inf in padding columns, and the
    token ids of the columns."""
    logits = jnp.einsum(
        "...d,dv->...v",
        hidden,
        output_matrix.astype(hidden.dtype),
        preferred_element_type=jnp.float32,
    )
    ids = lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    logits = logits / temperature
    if num_tokens < output_matrix.shape[1]:
        logits = jnp.where(ids < num_tokens, logits, MASKED)
    return logits, ids
