"""Responses to many prompts: keys by prompt, batches of one shape.

Letters: B batch, P prompt, R response.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.batches import PromptBatch, Rollout
from rlhf_jax.generation.generate import generate
from rlhf_jax.generation.sampling import Sampling
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.parallel.sharding import fetch, shard_batch


def row_keys(key: jax.Array, index: jax.Array) -> jax.Array:
    """One key a row, from the place of its prompt in the data set: [B] -> keys [B]."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, index)


def repeat_prompts(batch: PromptBatch, times: int) -> PromptBatch:
    """Every prompt `times` times in a row: [B] -> [B times], for as many responses."""
    repeated = jax.tree.map(lambda x: np.repeat(x, times, axis=0), batch)
    sample = np.tile(np.arange(times, dtype=np.int32), len(batch.index))
    return dataclasses.replace(repeated, index=repeated.index * times + sample)


def rollout(
    model: ChatGLM, batch: PromptBatch, key: jax.Array, sampling: Sampling
) -> Rollout:
    """Sample one response to each row of a batch."""
    batch = jax.tree.map(jnp.asarray, shard_batch(batch))
    keys = row_keys(key, batch.index)
    out = generate(model, batch.prompts, batch.prompt_mask, keys, sampling)
    return Rollout(
        prompts=batch.prompts,
        prompt_mask=batch.prompt_mask,
        responses=out.tokens,
        response_mask=out.mask,
        logprobs=out.logprobs,
        ended=out.ended,
    )


def respond_several(
    model: ChatGLM,
    prompts: list[list[int]],
    key: jax.Array,
    sampling: Sampling,
    *,
    count: int,
    batch_size: int,
) -> list[list[list[int]]]:
    """`count` responses to each prompt, as `respond` gives them."""
    repeated = [prompt for prompt in prompts for _ in range(count)]
    flat = respond(model, repeated, key, sampling, batch_size=batch_size)
    return [flat[i : i + count] for i in range(0, len(flat), count)]


def respond(
    model: ChatGLM,
    prompts: list[list[int]],
    key: jax.Array,
    sampling: Sampling,
    *,
    batch_size: int,
) -> list[list[int]]:
    """One response to each prompt, as token ids without padding.

    All batches have one shape, so one program is compiled; the last is filled with
    copies of its first prompt.
    """
    if not prompts:
        return []
    width = max(len(prompt) for prompt in prompts)
    width = -(-width // 8) * 8
    responses = []
    for start in range(0, len(prompts), batch_size):
        index = np.arange(start, start + batch_size)
        index[index >= len(prompts)] = start
        tokens = np.full((batch_size, width), sampling.pad_id, np.int32)
        mask = np.zeros((batch_size, width), bool)
        for row, i in enumerate(index):
            tokens[row, width - len(prompts[i]) :] = prompts[i]
            mask[row, width - len(prompts[i]) :] = True
        tokens, mask, index = shard_batch((tokens, mask, index))
        keys = row_keys(key, jnp.asarray(index))
        out = generate(model, tokens, mask, keys, sampling)
        lengths, found = fetch((out.lengths, out.tokens))
        real = min(batch_size, len(prompts) - start)
        responses += [found[row, : lengths[row]].tolist() for row in range(real)]
    return responses
