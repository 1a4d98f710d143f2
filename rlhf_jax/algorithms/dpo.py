"""DPO and its relatives: the options, the loss with its SFT term and the train step.

ChatGLM-RLHF (arXiv 2404.00934), section 4; DPO: arXiv 2305.18290, equation 7. KTO
(losses/kto.py) and ORPO (losses/orpo.py) take DPO's place on the same pairs: KTO splits
each pair into a desirable and an undesirable response.

Letters: B pairs.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.algorithms.sft import mean_loss
from rlhf_jax.batches import PackedRows, PreferenceBatch, SFTBatch
from rlhf_jax.generation.scoring import packed_logprobs, response_logprobs
from rlhf_jax.losses import dpo as losses
from rlhf_jax.losses import masked
from rlhf_jax.losses.kto import kto_kl, kto_loss
from rlhf_jax.losses.orpo import orpo_loss
from rlhf_jax.models.policy import Policy
from rlhf_jax.training import options
from rlhf_jax.training.accumulate import in_parts
from rlhf_jax.training.metrics import Mean
from rlhf_jax.training.optimizers import Optimizer
from rlhf_jax.training.state import TrainState, optimizer_step

Batch = PreferenceBatch  # the type of batch that `train_step` learns from
LOSSES = ("dpo", "robust", "ipo", "simpo", "length_regularised", "kto", "orpo")
WITHOUT_REFERENCE = ("simpo", "orpo")


@dataclasses.dataclass(frozen=True)
class Hyper:
    """Options of DPO that the compiled step depends on; configs/dpo.py explains them.

    `num_tokens` is the size of the tokenizer's vocabulary.
    """

    num_tokens: int
    chunk_size: int
    loss: str
    beta: float
    label_smoothing: float
    gamma: float
    alpha: float
    desirable_weight: float
    undesirable_weight: float
    beta_sft: float
    microbatches: int

    @classmethod
    def from_config(cls, config, num_tokens: int) -> "Hyper":
        return options.of_fields(cls, config, num_tokens=num_tokens)

    @property
    def needs_reference(self) -> bool:
        """True if the loss compares the policy with a reference."""
        return self.loss not in WITHOUT_REFERENCE


def pair_logprobs(
    policy: Policy, batch: PreferenceBatch | PackedRows, *, hyper: Hyper
) -> Float[Array, "B 2"]:
    """Return the summed log-probabilities of (chosen, rejected), float32; of packed
    rows [N, S, 2]."""
    if isinstance(batch, PackedRows):
        out = packed_logprobs(
            policy,
            batch,
            width=batch.targets.shape[1],
            temperature=1.0,
            num_tokens=hyper.num_tokens,
            chunk_size=hyper.chunk_size,
        )
        return out.logprobs.sum(-1)
    out = response_logprobs(
        policy,
        batch.prompts,
        batch.prompt_mask,
        batch.responses,
        batch.response_mask,
        temperature=1.0,
        num_tokens=hyper.num_tokens,
        chunk_size=hyper.chunk_size,
    )
    return masked.keep(out.logprobs, batch.response_mask).sum(-1)


def mismatched(batch: PreferenceBatch) -> PreferenceBatch:
    """Return each prompt with the responses to the prompt before it; the first has
    those to the last."""
    return dataclasses.replace(
        batch,
        responses=jnp.roll(batch.responses, 1, axis=0),
        response_mask=jnp.roll(batch.response_mask, 1, axis=0),
        valid=batch.valid & jnp.roll(batch.valid, 1),
    )


def mismatched_kl(
    policy: Policy,
    reference: Policy,
    other: PreferenceBatch | PackedRows,
    *,
    hyper: Hyper,
) -> Float[Array, ""]:
    """Estimate KL(policy || reference), nats per response, on prompts with responses to
    other prompts of the batch: the reference point of KTO."""

    def both(part: PreferenceBatch | PackedRows):
        return (
            pair_logprobs(policy, part, hyper=hyper),
            pair_logprobs(reference, part, hyper=hyper),
        )

    logprobs, ref_logprobs = in_parts(both, other, parts=hyper.microbatches)
    mask = jnp.broadcast_to(_valid(other)[..., None], logprobs.shape)
    return kto_kl(logprobs=logprobs, ref_logprobs=ref_logprobs, mask=mask)


def preference_loss(
    logprobs: Float[Array, "B 2"],
    ref_logprobs: Float[Array, "B 2"] | None,
    lengths: Array,
    hyper: Hyper,
    *,
    kl: Float[Array, ""] | None = None,
) -> losses.PreferenceLoss:
    """Compute the loss that `hyper.loss` names from (chosen, rejected) columns.

    Args:
        kl: the reference point of KTO (`mismatched_kl`), which no other loss reads.

    Raises:
        ValueError: the loss needs `ref_logprobs` or `kl`, which is None.
    """
    both_lengths = {"chosen_lengths": lengths[:, 0], "rejected_lengths": lengths[:, 1]}
    if not hyper.needs_reference:
        bare_loss = {
            "simpo": functools.partial(losses.simpo_loss, gamma=hyper.gamma),
            "orpo": orpo_loss,
        }[hyper.loss]
        return bare_loss(
            chosen_logprobs=logprobs[:, 0],
            rejected_logprobs=logprobs[:, 1],
            beta=hyper.beta,
            **both_lengths,
        )
    if ref_logprobs is None:
        raise ValueError(
            f"loss={hyper.loss!r} needs the reference's log-probabilities; a run with "
            "reference='on_the_fly' does not save them."
        )
    pair = losses.PairLogprobs(
        chosen=logprobs[:, 0],
        rejected=logprobs[:, 1],
        ref_chosen=ref_logprobs[:, 0],
        ref_rejected=ref_logprobs[:, 1],
    )
    if hyper.loss == "kto":
        if kl is None:
            raise ValueError(
                "loss='kto' needs the KL of the whole batch, which a saved batch lacks."
            )
        return kto_loss(
            pair,
            kl=kl,
            beta=hyper.beta,
            desirable_weight=hyper.desirable_weight,
            undesirable_weight=hyper.undesirable_weight,
        )
    if hyper.loss == "ipo":
        return losses.ipo_loss(pair, beta=hyper.beta)
    if hyper.loss == "length_regularised":
        return losses.length_regularised_dpo_loss(
            pair, beta=hyper.beta, alpha=hyper.alpha, **both_lengths
        )
    smoothed = {"dpo": losses.dpo_loss, "robust": losses.robust_dpo_loss}[hyper.loss]
    return smoothed(pair, beta=hyper.beta, label_smoothing=hyper.label_smoothing)


def _valid(batch: PreferenceBatch | PackedRows) -> Bool[Array, "B ..."]:
    """Return True for each pair, or slot of packed rows, that holds one."""
    if isinstance(batch, PackedRows):
        return batch.lengths[..., 0] > 0
    return batch.valid


def _lengths(batch: PreferenceBatch | PackedRows) -> Int[Array, "B ... 2"]:
    """Return the numbers of tokens of (chosen, rejected)."""
    if isinstance(batch, PackedRows):
        return batch.lengths
    return batch.response_mask.sum(-1)


def _real(batch: PreferenceBatch | PackedRows) -> Bool[Array, "B T"]:
    """Return a mask of the real tokens of what a model reads."""
    if isinstance(batch, PackedRows):
        return batch.mask
    responses = batch.response_mask.reshape(len(batch.prompts), -1)
    return jnp.concatenate([batch.prompt_mask, responses], axis=1)


def loss_fn(
    policy: Policy,
    inputs: tuple[
        PreferenceBatch | PackedRows, Float[Array, "B 2"] | None, SFTBatch | None
    ],
    *,
    reference,
    num_pairs: jax.Array,
    num_sft_tokens: jax.Array | None,
    hyper: Hyper,
    kl: Float[Array, ""] | None = None,
) -> tuple[jax.Array, dict[str, Mean]]:
    """Return the contribution of a part of a batch to L_preference + beta_sft * L_sft,
    and metrics.

    Args:
        inputs: the pairs, the reference's log-probabilities of the pairs, and the SFT
            batch (None: no SFT term).
        reference: the model that computes the reference's log-probabilities here;
            None: the log-probabilities are in `inputs`.
        num_pairs: the number of valid pairs in the whole batch.
        num_sft_tokens: the number of tokens that carry loss in the whole SFT batch;
            None without the SFT term.
        kl: `mismatched_kl` of the whole batch, for KTO.
    """
    batch, ref_logprobs, sft_batch = inputs
    valid, lengths = _valid(batch).reshape(-1), _lengths(batch).reshape(-1, 2)

    def of_pairs(logprobs):  # a slot without a pair has numbers that no loss minds
        return jnp.where(valid[:, None], logprobs.reshape(-1, 2), -1.0)

    logprobs = of_pairs(pair_logprobs(policy, batch, hyper=hyper))
    if reference is not None:
        ref_logprobs = pair_logprobs(reference, batch, hyper=hyper)
    if ref_logprobs is not None:
        ref_logprobs = of_pairs(ref_logprobs)
    out = preference_loss(logprobs, ref_logprobs, jnp.maximum(lengths, 1), hyper, kl=kl)
    loss = Mean.of(out.loss, valid)
    total = loss.total / num_pairs
    metrics = {
        "data/real_tokens": Mean.of(_real(batch)),
        "loss/dpo": loss,
        "rewards/chosen": Mean.of(out.chosen_rewards, valid),
        "rewards/rejected": Mean.of(out.rejected_rewards, valid),
        "rewards/margins": Mean.of(out.margin, valid),
        "rewards/accuracies": Mean.of(out.accuracy, valid),
        "logps/chosen": Mean.of(logprobs[:, 0], valid),
        "logps/rejected": Mean.of(logprobs[:, 1], valid),
        "lengths/chosen": Mean.of(lengths[:, 0], valid),
        "lengths/rejected": Mean.of(lengths[:, 1], valid),
    }
    if sft_batch is not None:
        sft_loss = mean_loss(
            policy, sft_batch, num_tokens=hyper.num_tokens, chunk_size=hyper.chunk_size
        )
        total += hyper.beta_sft * sft_loss.total / num_sft_tokens
        metrics["loss/sft"] = sft_loss
    return total, metrics


def batch_loss(
    policy,
    batch: PreferenceBatch | PackedRows,
    *,
    hyper: Hyper,
    ref_logprobs: Float[Array, "B 2"] | None = None,
    sft: SFTBatch | None = None,
) -> tuple[jax.Array, dict[str, Mean]]:
    """Return the loss of a whole batch, and metrics."""
    return loss_fn(
        policy,
        (batch, ref_logprobs, sft),
        reference=None,
        num_pairs=_valid(batch).sum(),
        num_sft_tokens=None if sft is None else sft.loss_mask.sum(),
        hyper=hyper,
    )


def train_step(
    state: TrainState,
    batch: PreferenceBatch | PackedRows,
    ref_logprobs: Float[Array, "B 2"] | None,
    sft: SFTBatch | None,
    reference,
    learning_rate: jax.Array,
    other: PackedRows | None = None,
    *,
    optimizer: Optimizer,
    hyper: Hyper,
) -> tuple[TrainState, dict]:
    """Take one optimizer step; return the new state and the metrics of the step.

    See `loss_fn` for the other arguments.

    Args:
        other: packed rows of the prompts of packed rows with responses to other prompts
            of the batch, for KTO.
    """
    kl = None
    if hyper.loss == "kto":
        if other is None:
            other = mismatched(batch)
        kl = mismatched_kl(state.model, reference, other, hyper=hyper)
    share = functools.partial(
        loss_fn,
        kl=kl,
        reference=reference,
        num_pairs=_valid(batch).sum(),
        num_sft_tokens=None if sft is None else sft.loss_mask.sum(),
        hyper=hyper,
    )
    state, metrics = optimizer_step(
        share,
        state,
        (batch, ref_logprobs, sft),
        optimizer=optimizer.at(learning_rate),
        microbatches=hyper.microbatches,
    )
    return state, metrics if kl is None else metrics | {"objective/kl": kl}
