"""The reward model: the options, the ranking loss and the train step.

ChatGLM-RLHF (arXiv 2404.00934), section 2. The loss is -log sigmoid(chosen - rejected)
plus a penalty on large scores, averaged over the pairs of the batch.
"""

import dataclasses
import functools

import jax

from rlhf_jax.batches import PackedPairs
from rlhf_jax.generation.scoring import pair_scores
from rlhf_jax.losses.reward import ranking_loss
from rlhf_jax.training import options
from rlhf_jax.training.metrics import Mean
from rlhf_jax.training.optimizers import Optimizer
from rlhf_jax.training.state import TrainState, optimizer_step

Batch = PackedPairs  # the type of batch that `train_step` learns from


@dataclasses.dataclass(frozen=True)
class Hyper:
    """Options of the reward model that the compiled step depends on;
    configs/reward.py explains them."""

    margin: float
    label_smoothing: float
    score_regularisation: float
    microbatches: int

    @classmethod
    def from_config(cls, config, num_tokens: int) -> "Hyper":
        """Read the options; `num_tokens`, which other algorithms need, is ignored."""
        del num_tokens
        return options.of_fields(cls, config)


def loss_fn(
    model, batch: PackedPairs, *, num_pairs: jax.Array, hyper: Hyper
) -> tuple[jax.Array, dict[str, Mean]]:
    """Return the contribution of a part of a batch to the loss, and metrics.

    Args:
        num_pairs: the number of valid pairs in the whole batch.
    """
    scores = pair_scores(model, batch).reshape(-1, 2)
    valid = batch.valid.reshape(-1)
    out = ranking_loss(
        chosen_scores=scores[:, 0],
        rejected_scores=scores[:, 1],
        margin=hyper.margin,
        label_smoothing=hyper.label_smoothing,
        score_regularisation=hyper.score_regularisation,
    )
    loss = Mean.of(out.loss, valid)
    metrics = {
        "loss/reward": loss,
        "loss/ranking": Mean.of(out.ranking, valid),
        "loss/regulariser": Mean.of(out.regulariser, valid),
        "rewards/accuracies": Mean.of(out.margin > 0, valid),
        "rewards/margins": Mean.of(out.margin, valid),
        "rewards/chosen": Mean.of(scores[:, 0], valid),
        "rewards/rejected": Mean.of(scores[:, 1], valid),
        "data/real_tokens": Mean.of(batch.mask),
    }
    return loss.total / num_pairs, metrics


def batch_loss(
    model, batch: PackedPairs, *, hyper: Hyper
) -> tuple[jax.Array, dict[str, Mean]]:
    """Return the loss of a whole batch, and metrics."""
    return loss_fn(model, batch, num_pairs=batch.valid.sum(), hyper=hyper)


def train_step(
    state: TrainState,
    batch: PackedPairs,
    learning_rate: jax.Array,
    *,
    optimizer: Optimizer,
    hyper: Hyper,
) -> tuple[TrainState, dict]:
    """Take one optimizer step; return the new state and the metrics of the step."""
    share = functools.partial(loss_fn, num_pairs=batch.valid.sum(), hyper=hyper)
    return optimizer_step(
        share,
        state,
        batch,
        optimizer=optimizer.at(learning_rate),
        microbatches=hyper.microbatches,
    )
