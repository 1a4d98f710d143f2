"""Rollouts: one sampled response to each row of a batch of prompts.

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
from rlhf_jax.parallel.sharding import shard_batch


def row_keys(key: jax.Array, index: jax.Array) -> jax.Array:
    """Derive one key a row from the row's index in the data set: [B] -> keys [B]."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, index)


def repeat_prompts(batch: PromptBatch, times: int) -> PromptBatch:
    """Repeat every prompt `times` times, for as many responses: [B] -> [B times]."""
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
