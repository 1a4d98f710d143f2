"""One response, token by token as it is sampled: for terminals and servers."""

import functools
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from rlhf_jax.generation.generate import (
    check_prompts,
    decode_step,
    prefill,
    split_by_row,
)
from rlhf_jax.generation.sampling import Sampling
from rlhf_jax.models.chatglm import ChatGLM

SHORTEST = 64  # tokens for which the first program is compiled


def stream(
    model: ChatGLM, prompt: Sequence[int], key: jax.Array, sampling: Sampling
) -> Iterator[int]:
    """Yield the response's tokens, its end token included.

    The tokens equal those of `generate` for the same prompt and key. Programs are
    compiled for prompts of 64, 128, 256, ... tokens.

    Raises:
        ValueError: prompt and response do not fit the model's context, or `generate`
            would refuse the prompt.
    """
    room = model.config.context_length - sampling.max_new_tokens
    if len(prompt) > room:
        raise ValueError(
            f"The prompt has {len(prompt)} tokens; beside max_new_tokens="
            f"{sampling.max_new_tokens} the model's context of "
            f"{model.config.context_length} has room for {max(room, 0)}."
        )
    width = min(max(SHORTEST, 1 << (len(prompt) - 1).bit_length()), room)
    tokens = np.full((1, width), sampling.pad_id, np.int32)
    mask = np.arange(width)[None] >= width - len(prompt)
    tokens[mask] = prompt
    check_prompts(model, tokens, mask, sampling)
    keys = split_by_row(key, 1)
    state = _prefill(model, tokens, mask, sampling)
    for _ in range(sampling.max_new_tokens):
        state, token, live = _step(model, state, keys, sampling)
        yield int(token)
        if not live:
            return


@functools.partial(jax.jit, static_argnames="sampling")
def _prefill(model, tokens, mask, sampling):
    return prefill(model, tokens, mask, sampling, slots=sampling.max_new_tokens)


@functools.partial(jax.jit, static_argnames="sampling", donate_argnames="state")
def _step(model, state, keys, sampling):
    """The next state, the token drawn, and whether another may follow."""
    end = decode_step(model, state, keys, sampling)
    return end, end.tokens[0, state.step], end.live[0]
