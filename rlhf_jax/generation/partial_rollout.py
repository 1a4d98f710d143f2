"""Partial rollouts: more prompts are begun than an iteration needs; the responses that
are still being sampled when it has enough go on in the next.

So no row waits for the longest response. The prompts form one endless stream, whose
place tells a prompt and its random keys; what was begun is a part of a run's state.
The beginning of such a response was sampled by an earlier policy, which its
log-probabilities say.

Letters: A prompts begun ahead, N prompts of an iteration, K responses to each.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from rlhf_jax.batches import PromptBatch, Rollout
from rlhf_jax.generation.responses import Responses, no_responses, respond
from rlhf_jax.generation.rollout import as_rollout, repeat_prompts
from rlhf_jax.generation.sampling import Sampling
from rlhf_jax.models.chatglm import ChatGLM


class Begun(NamedTuple):
    """Prompts that were begun and not learned from: on the host."""

    places: np.ndarray  # int32 [A], in the stream
    following: np.ndarray  # int32 [], the place of the next prompt of the stream
    responses: Responses  # A * K


def nothing_begun(ahead: int, samples: int, sampling: Sampling) -> Begun:
    """Return the first prompts of a stream, without a token of their responses."""
    return Begun(
        places=np.arange(ahead, dtype=np.int32),
        following=np.array(ahead, np.int32),
        responses=no_responses(ahead * samples, sampling),
    )


def partial_rollout(
    model: ChatGLM,
    begun: Begun,
    prompts_at: Callable[[np.ndarray], PromptBatch],
    key: jax.Array,
    sampling: Sampling,
    *,
    count: int,
    samples: int,
    rows: int,
) -> tuple[Rollout, np.ndarray, Begun]:
    """Go on with what was begun, and begin `count` prompts more, until `count` prompts
    have all their responses: those that come first in the stream, if there are more.

    Args:
        prompts_at: returns the prompts at places [n] of the stream; a response's random
            keys derive from `key`, its prompt's place and its number among K.
        rows: the number of rows that decode side by side at most; 0 for all.

    Returns:
        The rollout [count * K], the places of its prompts [count], and what is begun.
    """
    following = begun.following + np.arange(count, dtype=np.int32)
    places = np.concatenate([begun.places, following])
    new = no_responses(count * samples, sampling)
    batch = prompts_at(places)
    by_response = repeat_prompts(
        PromptBatch(batch.prompts, batch.prompt_mask, places), samples
    )
    responses = respond(
        model,
        batch.prompts,
        batch.prompt_mask,
        key,
        sampling,
        samples=samples,
        rows=rows,
        numbers=by_response.index,
        begun=jax.tree.map(lambda *x: np.concatenate(x), begun.responses, new),
        enough=count,
    )
    done = np.flatnonzero(responses.done.reshape(-1, samples).all(axis=1))[:count]
    rest = np.setdiff1d(np.arange(len(places)), done)

    def of(prompts, tree):
        which = (prompts[:, None] * samples + np.arange(samples)).reshape(-1)
        return jax.tree.map(lambda x: x[which], tree)

    rollout = as_rollout(of(done, by_response), of(done, responses))
    next_place = np.array(begun.following + count, np.int32)
    return rollout, places[done], Begun(places[rest], next_place, of(rest, responses))
