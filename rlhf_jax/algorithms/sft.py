"""Supervised fine-tuning: the options, the loss and the train step.

The loss is the next-token loss of the assistant's tokens, averaged over those tokens of
the whole batch. PPO and DPO add `mean_loss` of a separate SFT batch to their losses.
"""

import dataclasses
import functools

import jax

from rlhf_jax.batches import SFTBatch
from rlhf_jax.generation.scoring import dialogue_logprobs
from rlhf_jax.losses.sft import sft_loss
from rlhf_jax.models.policy import Policy
from rlhf_jax.training import options
from rlhf_jax.training.metrics import Mean
from rlhf_jax.training.optimizers import Optimizer
from rlhf_jax.training.state import TrainState, optimizer_step

Batch = SFTBatch  # the type of batch that `train_step` learns from


@dataclasses.dataclass(frozen=True)
class Hyper:
    """Options of SFT that the compiled step depends on; configs/sft.py explains them.

    `num_tokens` is the size of the tokenizer's vocabulary.
    """

    num_tokens: int
    chunk_size: int
    microbatches: int

    @classmethod
    def from_config(cls, config, num_tokens: int) -> "Hyper":
        return options.of_fields(cls, config, num_tokens=num_tokens)


def mean_loss(
    policy: Policy, batch: SFTBatch, *, num_tokens: int, chunk_size: int
) -> Mean:
    """Return the mean of -log p over the tokens that carry loss, float32."""
    logprobs, mask = dialogue_logprobs(
        policy, batch, num_tokens=num_tokens, chunk_size=chunk_size
    )
    return Mean.of(sft_loss(logprobs=logprobs), mask)


def loss_fn(
    policy: Policy, batch: SFTBatch, *, num_target: jax.Array, hyper: Hyper
) -> tuple[jax.Array, dict[str, Mean]]:
    """Return the contribution of a part of a batch to the loss, and metrics.

    Args:
        num_target: the number of tokens that carry loss in the whole batch.
    """
    loss = mean_loss(
        policy, batch, num_tokens=hyper.num_tokens, chunk_size=hyper.chunk_size
    )
    metrics = {"loss/sft": loss, "data/real_tokens": Mean.of(batch.mask)}
    return loss.total / num_target, metrics


def batch_loss(
    policy: Policy, batch: SFTBatch, *, hyper: Hyper
) -> tuple[jax.Array, dict[str, Mean]]:
    """Return the loss of a whole batch, and metrics."""
    return loss_fn(policy, batch, num_target=batch.loss_mask.sum(), hyper=hyper)


def train_step(
    state: TrainState,
    batch: SFTBatch,
    learning_rate: jax.Array,
    *,
    optimizer: Optimizer,
    hyper: Hyper,
) -> tuple[TrainState, dict]:
    """Take one optimizer step; return the new state and the metrics of the step."""
    share = functools.partial(loss_fn, num_target=batch.loss_mask.sum(), hyper=hyper)
    return optimizer_step(
        share,
        state,
        batch,
        optimizer=optimizer.at(learning_rate),
        microbatches=hyper.microbatches,
    )
