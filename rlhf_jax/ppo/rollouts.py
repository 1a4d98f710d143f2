"""The responses that each iteration of PPO learns from: to which prompts, with which
random keys, and what goes on in the next iteration.

With `one_step_off_policy`, the responses of an iteration were sampled before the
previous iteration's update: while the functions of rewards ran on the host, the device
had nothing else to do. One-step off-policy learning is studied by Noukhovitch et al.
(2024), arXiv 2410.18252.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from rlhf_jax.batches import PromptBatch, Rollout
from rlhf_jax.data.batching import BatchOrder, number_repeats
from rlhf_jax.generation.partial_rollout import Begun, nothing_begun, partial_rollout
from rlhf_jax.generation.rollout import rollout
from rlhf_jax.generation.sampling import Sampling
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.parallel.sharding import shard_batch


class Answered(NamedTuple):
    """The prompts of an iteration, and the responses to them."""

    index: np.ndarray  # int [prompts], in the data set
    responses: Rollout  # samples_per_prompt for each prompt, adjacent

    def on_devices(self) -> "Answered":
        """Return the same with its responses, which are on the host, on the devices."""
        sharded = shard_batch(self.responses)
        return self._replace(responses=jax.tree.map(jnp.asarray, sharded))


class Rollouts:
    """The prompts of each iteration, and the sampling of responses to them.

    Args:
        config: batch_size, samples_per_prompt, rollout_rows, prompts_ahead and
            replay_routing.
        prompts_at: returns prompts of the data set by their indices [n].
        key: the random key of all responses.
    """

    def __init__(
        self,
        config: ConfigDict,
        order: BatchOrder,
        prompts_at: Callable[[np.ndarray], PromptBatch],
        key: jax.Array,
        sampling: Sampling,
    ):
        self._order, self._prompts_at = order, prompts_at
        self._key, self._sampling = key, sampling
        self._ahead, self._routed = config.prompts_ahead, config.replay_routing
        self._sizes = {
            "samples": config.samples_per_prompt,
            "rows": config.rollout_rows,
        }

    def nothing_begun(self) -> Begun | None:
        """Return what is begun before the first iteration; None where an iteration
        waits for all of its responses."""
        if not self._ahead:
            return None
        return nothing_begun(self._ahead, self._sizes["samples"], self._sampling)

    def nothing_answered(self, width: int) -> Answered:
        """Return what `answer` returns for prompts of `width` tokens, all zero."""
        count = self._order.batch_size
        rows = count * self._sizes["samples"]
        prompts = np.zeros((rows, width), np.int32)
        responses = np.zeros((rows, self._sampling.max_new_tokens), np.int32)
        return Answered(
            index=np.zeros(count, np.int32),
            responses=Rollout(
                prompts=prompts,
                prompt_mask=prompts > 0,
                responses=responses,
                response_mask=responses > 0,
                logprobs=responses.astype(np.float32),
                ended=np.zeros(rows, bool),
            ),
        )

    def answer(
        self, sampler: ChatGLM, place: int, begun: Begun | None
    ) -> tuple[Answered, Begun | None]:
        """Answer the prompts at `place` of their order; with prompts that are begun,
        those of them whose responses are done first. Return what is begun, too."""
        if begun is None:
            index = self._order.indices(place)
            batch = self._prompts_at(number_repeats(index, self._order.num_examples))
            key = jax.random.fold_in(self._key, place)
            how = self._sizes | {"routed": self._routed}
            responses = rollout(sampler, batch, key, self._sampling, **how)
            return Answered(index, responses), None
        responses, places, begun = partial_rollout(
            sampler,
            begun,
            lambda places: self._prompts_at(self._order.at(places)),
            self._key,
            self._sampling,
            count=self._order.batch_size,
            **self._sizes,
        )
        return Answered(self._order.at(places), responses), begun
