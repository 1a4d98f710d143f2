"""One response, token by token as it is sampled: for terminals and servers."""

from collections.abc import Iterator, Sequence

import jax
import numpy as np

from rlhf_jax.generation import rows as rows_
from rlhf_jax.generation.sampling import Sampling
from rlhf_jax.models.chatglm import ChatGLM

SHORTEST = 64  # tokens for which the first program is compiled


def stream(
    model: ChatGLM, prompt: Sequence[int], key: jax.Array, sampling: Sampling
) -> Iterator[int]:
    """Yield the response's tokens, its end token included.

    The tokens equal those of `respond` for the same prompt and key. Programs are
    compiled for prompts of 64, 128, 256, ... tokens.

    Raises:
        ValueError: prompt and response do not fit the model's context, or `respond`
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
    rows_.check_prompts(model, tokens, mask, sampling)
    decoder = rows_.for_decoding(model)
    slots = sampling.max_new_tokens
    rows = rows_.empty(decoder, prompts=1, share=1, width=width, slots=slots)
    rows, _ = rows_.read_prompts(model, rows, np.array([0]), tokens, mask)
    number = np.array([0], np.int32)
    for step in range(sampling.max_new_tokens):
        starts = np.array([step == 0])
        rows, drawn = rows_.decode_round(
            decoder, rows, key, starts, number, sampling, steps=1
        )
        yield int(drawn.tokens[0, 0])
        if not rows.live[0]:
            return
