"""PPO and its critic-free relatives: losses and the train step.

ChatGLM-RLHF (arXiv 2404.00934), section 3. stages/ppo.py describes one iteration and
calls these functions; ppo/ holds the options, the state, the forward passes and the
experience that the train step learns from.

Letters: B batch, R response.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.algorithms.sft import mean_loss
from rlhf_jax.batches import Experience, PackedRows, SFTBatch
from rlhf_jax.losses import aggregation, kl, masked
from rlhf_jax.losses import ppo as losses
from rlhf_jax.models.adapters import base_parts, join, own_part
from rlhf_jax.models.policy import Policy
from rlhf_jax.ppo.forward import (
    in_slots,
    packed_routing,
    policy_logprobs,
    state_values,
    with_rows_as,
)
from rlhf_jax.ppo.options import Hyper
from rlhf_jax.ppo.state import PPOState, move_reference
from rlhf_jax.training.metrics import Mean
from rlhf_jax.training.optimizers import Optimizer
from rlhf_jax.training.state import optimizer_step

Batch = Experience  # the type of batch that `train_step` learns from


def in_packed_rows(experience: Experience, packed: PackedRows) -> Experience:
    """Return an experience [B, ...] as the packed rows that hold some of it, with
    leaves [N, S, ...]."""
    taken = with_rows_as(lambda x: in_slots(x, packed), experience)
    is_used = packed.slots < len(experience.prompts)
    mask = taken.response_mask & is_used[..., None]
    routing = experience.routing
    if routing is not None:
        routing = packed_routing(routing, packed)
    return dataclasses.replace(
        taken, response_mask=mask, routing=routing, packed=packed
    )


def _flat(experience: Experience) -> Experience:
    """Return the responses of packed rows one by one: [N, S, ...] -> [N S, ...]."""
    if experience.packed is None:
        return experience
    return with_rows_as(lambda x: x.reshape(-1, *x.shape[2:]), experience)


def aggregate(
    x: Float[Array, "B R"], mask: Bool[Array, "B R"], *, hyper: Hyper
) -> Mean:
    """Average a loss in the way that `hyper.loss_aggregation` names."""
    out = aggregation.aggregate(
        x,
        mask,
        aggregation=hyper.loss_aggregation,
        length=hyper.max_response_tokens,
    )
    return Mean(out.total, out.count.astype(jnp.float32))


def aggregate_count(mask: Bool[Array, "B R"], *, hyper: Hyper) -> jax.Array:
    """Return the divisor of `aggregate` over a whole minibatch, at least 1."""
    return jnp.maximum(aggregate(mask, mask, hyper=hyper).count, 1)


def policy_loss_fn(
    policy: Policy,
    inputs: tuple[Experience, SFTBatch | None],
    *,
    count: jax.Array,
    num_sft_tokens: jax.Array | None,
    kl_coef: jax.Array | float,
    hyper: Hyper,
) -> tuple[jax.Array, dict[str, Mean]]:
    """Return the contribution of a part of a minibatch to the policy's loss,

    L_ppo + kl_coef * KL - entropy_coef * entropy + beta_sft * L_sft,

    and metrics.

    Args:
        inputs: the experience, and the SFT batch (None: no SFT term).
        count: `aggregate_count` of the whole minibatch.
        num_sft_tokens: the number of tokens that carry loss in the whole SFT batch;
            None without the SFT term.
        kl_coef: the KL coefficient in the loss (used if `hyper.kl_in_loss`).
    """
    experience, sft_batch = inputs
    experience = _flat(experience)
    mask = experience.response_mask
    current = policy_logprobs(
        policy,
        experience,
        experience.packed,
        hyper=hyper,
        routing=experience.routing,
    )
    out = losses.policy_loss(
        logprobs=current.logprobs,
        old_logprobs=experience.old_logprobs,
        advantages=experience.advantages,
        mask=mask,
        objective=hyper.objective,
        clip_range=hyper.clip_range,
        clip_range_high=hyper.clip_range_high or hyper.clip_range,
        dual_clip=hyper.dual_clip or jnp.inf,
    )
    if experience.weights is not None:
        out = out._replace(loss=out.loss * masked.keep(experience.weights, mask))
    policy_loss = aggregate(out.loss, mask, hyper=hyper)
    total = policy_loss.total / count
    metrics = {
        "loss/policy": policy_loss,
        "policy/approxkl": Mean.of(out.approxkl, mask),
        "policy/clipfrac": Mean.of(out.clipped, mask),
        "val/ratio": Mean.of(out.ratio, mask),
        "data/real_tokens": Mean.of(_real(experience)),
    }
    if hyper.kl_in_loss:
        token_kl = kl.k3(masked.keep(current.logprobs, mask), experience.ref_logprobs)
        kl_loss = aggregate(token_kl, mask, hyper=hyper)
        total += kl_coef * kl_loss.total / count
        metrics["loss/kl"] = kl_loss
    if hyper.entropy_coef:
        entropy = aggregate(current.entropy, mask, hyper=hyper)
        total -= hyper.entropy_coef * entropy.total / count
        metrics["policy/entropy"] = entropy
    if sft_batch is not None:
        sft_loss = mean_loss(
            policy, sft_batch, num_tokens=hyper.num_tokens, chunk_size=hyper.chunk_size
        )
        total += hyper.beta_sft * sft_loss.total / num_sft_tokens
        metrics["loss/sft"] = sft_loss
    return total, metrics


def _real(experience: Experience) -> Bool[Array, "..."]:
    """Return a mask of the real tokens of what a model reads."""
    if experience.packed is not None:
        return experience.packed.mask
    both = (experience.prompt_mask, experience.response_mask)
    return jnp.concatenate(both, axis=-1)


def value_loss_fn(
    value_model, experience: Experience, *, num_tokens: jax.Array, hyper: Hyper
) -> tuple[jax.Array, dict[str, Mean]]:
    """Return the contribution of a part of a minibatch to the clipped value loss, and
    metrics.

    Args:
        num_tokens: the number of response tokens in the whole minibatch.
    """
    experience = _flat(experience)
    mask = experience.response_mask
    out = losses.ppo_value_loss(
        values=state_values(value_model, experience, experience.packed),
        old_values=experience.old_values,
        returns=experience.returns,
        mask=mask,
        value_clip_range=hyper.value_clip_range,
    )
    loss = Mean.of(out.loss, mask)
    metrics = {"loss/value": loss, "val/clipfrac": Mean.of(out.clipped, mask)}
    return loss.total / num_tokens, metrics


def batch_loss(
    policy: Policy, batch: Experience, *, hyper: Hyper, sft: SFTBatch | None = None
) -> tuple[jax.Array, dict[str, Mean]]:
    """Return the policy's loss of a whole experience at the initial KL coefficient, and
    metrics."""
    return policy_loss_fn(
        policy,
        (batch, sft),
        count=aggregate_count(batch.response_mask, hyper=hyper),
        num_sft_tokens=None if sft is None else sft.loss_mask.sum(),
        kl_coef=hyper.kl_coef,
        hyper=hyper,
    )


def minibatches(key: jax.Array, num_rows: int, *, hyper: Hyper) -> Int[Array, "U b"]:
    """Return the rows of the experience that each update of an iteration learns from;
    every epoch has an order of its own."""
    keys = jax.random.split(key, hyper.ppo_epochs)
    orders = jax.vmap(lambda k: jax.random.permutation(k, num_rows))(keys)
    return orders.reshape(hyper.num_updates, -1)


def train_step(
    state: PPOState,
    experience: Experience,
    sft: SFTBatch | None,
    key: jax.Array,
    learning_rates: tuple[Float[Array, " U"], Float[Array, " U"]],
    packed: PackedRows | None = None,
    *,
    policy_optimizer: Optimizer,
    value_optimizer: Optimizer,
    hyper: Hyper,
) -> tuple[PPOState, dict]:
    """Run all epochs and minibatches of one iteration, in one scan of U updates; then
    move the reference, if it is one that moves.

    Args:
        sft: one SFT batch for each update, stacked: leaves [U, b, T].
        key: the random key of the order of the rows in each epoch.
        learning_rates: the learning rates of the policy and of the value model.
        packed: the `minibatches` of `key` as packed rows, leaves [U, N, ...]; None
            gives every response a row of its own.
    """

    bases = base_parts((state.policy, state.value))

    def one_update(own, inputs):
        policy, value = join(own, bases)
        rows, sft_batch, (policy_rate, value_rate) = inputs
        if packed is None:
            batch = jax.tree.map(lambda x: x[rows], experience)
        else:
            batch = in_packed_rows(experience, rows)
        policy_share = functools.partial(
            policy_loss_fn,
            count=aggregate_count(_flat(batch).response_mask, hyper=hyper),
            num_sft_tokens=None if sft_batch is None else sft_batch.loss_mask.sum(),
            kl_coef=state.kl_coef,
            hyper=hyper,
        )
        policy, metrics = optimizer_step(
            policy_share,
            policy,
            (batch, sft_batch),
            optimizer=policy_optimizer.at(policy_rate),
            microbatches=hyper.microbatches,
        )
        if value is not None:
            value_share = functools.partial(
                value_loss_fn,
                num_tokens=jnp.maximum(batch.response_mask.sum(), 1),
                hyper=hyper,
            )
            value, value_metrics = optimizer_step(
                value_share,
                value,
                batch,
                optimizer=value_optimizer.at(value_rate),
                microbatches=hyper.microbatches,
            )
            value_norm = value_metrics.pop("optim/grad_norm")
            metrics |= {"optim/value_grad_norm": value_norm} | {
                name.replace("experts/", "experts/value_"): x
                for name, x in value_metrics.items()
            }
        return own_part((policy, value)), metrics

    num_rows = len(experience.prompts)
    rows = minibatches(key, num_rows, hyper=hyper) if packed is None else packed
    own, metrics = jax.lax.scan(
        one_update,
        own_part((state.policy, state.value)),
        (rows, sft, learning_rates),
    )
    policy, value = join(own, bases)
    first_ratio = jax.tree.map(lambda x: x[0], metrics["val/ratio"])
    metrics = jax.tree.map(lambda x: x.sum(0), metrics)
    # No response may be left to learn from: the losses are then 0, not 0 / 0.
    metrics = {
        name: Mean(x.total, jnp.maximum(x.count, 1)) if isinstance(x, Mean) else x
        for name, x in metrics.items()
    }
    metrics["val/ratio_first"] = first_ratio
    skipped = [model.skipped for model in (policy, value) if model is not None]
    metrics["optim/skipped"] = jnp.stack(skipped).max()
    reference = state.reference
    if reference is not None:
        reference = move_reference(reference, policy.model, rate=hyper.reference_rate)
    state = dataclasses.replace(state, policy=policy, value=value, reference=reference)
    return state, metrics
