"""Rollouts: sampled responses to a batch of prompts, as PPO learns from them.

Letters: B batch, P prompt, R response.
"""

import dataclasses

import jax
import numpy as np

from rlhf_jax.batches import PromptBatch, Rollout
from rlhf_jax.generation.responses import Responses, respond
from rlhf_jax.generation.sampling import Sampling
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.parallel.sharding import shard_batch


def repeat_prompts(batch: PromptBatch, times: int) -> PromptBatch:
    """Repeat every prompt `times` times, for as many responses: [B] -> [B times]."""
    repeated = jax.tree.map(lambda x: np.repeat(x, times, axis=0), batch)
    sample = np.tile(np.arange(times, dtype=np.int32), len(batch.index))
    return dataclasses.replace(repeated, index=repeated.index * times + sample)


def rollout(
    model: ChatGLM,
    batch: PromptBatch,
    key: jax.Array,
    sampling: Sampling,
    *,
    samples: int = 1,
    rows: int = 0,
    routed: bool = False,
) -> Rollout:
    """Sample `samples` responses to each prompt of a batch: [B] -> [B samples], the
    responses to a prompt adjacent.

    Args:
        rows: the number of rows that decode side by side at most; 0 for all.
        routed: whether to keep the experts of each token, of a mixture of experts.
    """
    repeated = repeat_prompts(batch, samples)
    responses = respond(
        model,
        np.asarray(batch.prompts),
        np.asarray(batch.prompt_mask),
        key,
        sampling,
        samples=samples,
        rows=rows,
        numbers=np.asarray(repeated.index),
        routed=routed,
    )
    return as_rollout(repeated, responses)


def as_rollout(batch: PromptBatch, responses: Responses) -> Rollout:
    """Put responses, one to each row of a batch, on the devices as a rollout."""
    arrays = {
        "prompts": np.asarray(batch.prompts),
        "prompt_mask": np.asarray(batch.prompt_mask),
        "responses": responses.tokens,
        "response_mask": responses.mask,
        "logprobs": responses.logprobs,
        "ended": responses.ended,
        "routing": responses.routing,
    }
    return Rollout(**jax.tree.map(jax.numpy.asarray, shard_batch(arrays)))
