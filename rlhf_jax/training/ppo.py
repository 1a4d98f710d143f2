"""One iteration of PPO in pure functions: experience, losses, update.

ChatGLM-RLHF (arXiv 2404.00934), section 3; stages/ppo.py says what it does and calls
it. Letters: B batch, R response.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlhf_jax.batches import Experience, Rollout, SFTBatch
from rlhf_jax.generation.scoring import (
    dialogue_logprobs,
    one_response,
    response_logprobs,
    response_scores,
    response_values,
)
from rlhf_jax.losses import advantages as advantages_
from rlhf_jax.losses import kl, masked, ppo
from rlhf_jax.losses.sft import sft_loss
from rlhf_jax.training import state as state_
from rlhf_jax.training.accumulate import in_parts
from rlhf_jax.training.metrics import Mean
from rlhf_jax.training.state import TrainState


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PPOState:
    """What changes: the policy; the value model (None without a critic); the price of
    the KL; the moments of all scores (normalise_scores); how often a KL above the
    ceiling was rolled back."""

    policy: TrainState
    value: TrainState | None
    kl_coef: jax.Array
    moments: advantages_.RunningMoments
    rollbacks: jax.Array


def with_opt_states(state: PPOState, change: Callable[[dict], dict]) -> PPOState:
    """The state with `change` applied to the state of each model's optimizer."""

    def changed(trained: TrainState) -> TrainState:
        return dataclasses.replace(trained, opt_state=change(trained.opt_state))

    value = state.value and changed(state.value)
    return dataclasses.replace(state, policy=changed(state.policy), value=value)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Frozen:
    """What does not: the policy's start, and the reward model."""

    reference: object
    reward: object


@dataclasses.dataclass(frozen=True)
class Hyper:
    """What the compiled programs depend on; see configs/ppo.py."""

    num_tokens: int
    temperature: float
    chunk_size: int
    advantage: str
    samples_per_prompt: int
    normalise_scores: bool
    whiten_rewards: bool
    whiten_advantages: bool
    missing_end_penalty: float
    score_clip: float
    kl_in_loss: bool
    kl_target: float
    kl_horizon: float
    gamma: float
    lam: float
    clip_range: float
    dual_clip: float
    value_clip_range: float
    beta_sft: float
    ppo_epochs: int
    minibatches: int
    microbatches: int


def policy_logprobs(policy, batch: Rollout | Experience, *, hyper: Hyper):
    """Log-probability and entropy [B, R] of the response tokens, at the temperature of
    the rollout."""
    out = response_logprobs(
        policy,
        *one_response(batch),
        temperature=hyper.temperature,
        num_tokens=hyper.num_tokens,
        chunk_size=hyper.chunk_size,
    )
    return out._replace(logprobs=out.logprobs[:, 0], entropy=out.entropy[:, 0])


def make_experience(
    state: PPOState,
    frozen: Frozen,
    rolled: Rollout,
    baseline_scores: jax.Array,
    *,
    hyper: Hyper,
) -> tuple[Experience, dict, dict]:
    """Everything the update needs, fixed before it.

    Args:
        baseline_scores: float32 [B], the score of another answer to each row's prompt
            (the reference's, or the policy's greedy one); zeros for no baseline.

    Returns:
        The experience, the fields of the state that it changes, and metrics.
    """

    def ask_models(rolled: Rollout):
        mask = rolled.response_mask
        old = policy_logprobs(state.policy.model, rolled, hyper=hyper)
        ref = policy_logprobs(frozen.reference, rolled, hyper=hyper)
        scores = response_scores(frozen.reward, *one_response(rolled))[:, 0]
        values = None
        if state.value is not None:
            values = response_values(state.value.model, *one_response(rolled))[:, 0]
            values = masked.keep(values, mask)
        old_logprobs = masked.keep(old.logprobs, mask)
        ref_logprobs = masked.keep(ref.logprobs, mask)
        return old_logprobs, old.entropy, ref_logprobs, scores, values

    # As many rows at a time as in the update: that is what fits.
    parts = hyper.minibatches * hyper.microbatches
    old_logprobs, entropy, ref_logprobs, scores, values = in_parts(
        ask_models, rolled, parts=parts
    )
    mask = rolled.response_mask

    baselined = advantages_.reference_baseline(
        scores=scores, reference_scores=baseline_scores
    )
    rewarded, moments = baselined, state.moments
    if hyper.normalise_scores:
        everything = jnp.ones(scores.shape, bool)
        moments = advantages_.update_moments(moments, rewarded, everything)
        rewarded = advantages_.normalise(rewarded, moments)
    rewarded = kl.missing_end_penalty(
        scores=rewarded, ended=rolled.ended, penalty=hyper.missing_end_penalty
    )
    rewarded = kl.clip_scores(rewarded, hyper.score_clip)
    rewards = kl.penalised_rewards(
        scores=rewarded,
        logprobs=old_logprobs,
        ref_logprobs=ref_logprobs,
        mask=mask,
        kl_coef=0.0 if hyper.kl_in_loss else state.kl_coef,
    )
    advantages, returns = estimate_advantages(rewards, values, mask, hyper=hyper)
    experience = Experience(
        prompts=rolled.prompts,
        prompt_mask=rolled.prompt_mask,
        responses=rolled.responses,
        response_mask=mask,
        old_logprobs=old_logprobs,
        ref_logprobs=ref_logprobs,
        advantages=advantages,
        old_values=values,
        returns=returns,
    )

    sequence_kl = kl.k1(old_logprobs, ref_logprobs).sum(-1)  # 0 where masked
    gap = old_logprobs - masked.keep(rolled.logprobs, mask)  # trainer and sampler
    metrics = {
        "objective/kl": Mean.of(sequence_kl),
        "objective/scores": Mean.of(scores),
        "objective/rlhf_reward": Mean.of(rewarded - state.kl_coef * sequence_kl),
        "objective/non_score_reward": Mean.of(-state.kl_coef * sequence_kl),
        "objective/baselined_scores": Mean.of(baselined),
        "objective/entropy": Mean.of(entropy, mask),
        "objective/kl_coef": Mean.of(state.kl_coef),
        "response/length_mean": Mean.of(mask.sum(-1)),
        "response/ended_fraction": Mean.of(rolled.ended),
        "rollout/logprob_gap_mean": Mean.of(jnp.abs(gap), mask),
        "rollout/logprob_gap_max": jnp.abs(gap).max(),
        "rollout/ratio_outside": Mean.of(jnp.abs(jnp.expm1(gap)) > 0.1, mask),
    }
    if values is not None:
        metrics["val/explained_variance"] = ppo.explained_variance(
            values=values, returns=returns, mask=mask
        )
    kl_coef = state.kl_coef
    if hyper.kl_target:
        kl_coef = kl.update_kl_coef(
            kl_coef=kl_coef,
            kl=sequence_kl.mean(),
            target=hyper.kl_target,
            horizon=hyper.kl_horizon,
            batch_size=len(sequence_kl),
        )
    changes = {"kl_coef": kl_coef, "moments": moments}
    # A score that is not finite would stay in the running statistics for ever.
    finite = jnp.isfinite(baselined).all() & jnp.isfinite(sequence_kl).all()
    changes = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old),
        changes,
        {"kl_coef": state.kl_coef, "moments": state.moments},
    )
    return experience, changes, metrics


def estimate_advantages(rewards, values, mask, *, hyper: Hyper):
    """Advantages [B, R], and the returns [B, R] that the value model learns (None
    without one), from rewards and values [B, R]."""
    if hyper.advantage == "gae":
        if hyper.whiten_rewards:
            rewards = masked.whiten(rewards, mask, shift_mean=False)
        gae = functools.partial(advantages_.gae, gamma=hyper.gamma, lam=hyper.lam)
        advantages, returns = jax.vmap(gae)(rewards=rewards, values=values, mask=mask)
    else:
        # Of a whole response: its score less its KL. [prompts, samples_per_prompt]
        totals, returns = rewards.sum(-1).reshape(-1, hyper.samples_per_prompt), None
        if hyper.advantage == "rloo":
            totals = advantages_.rloo_advantages(scores=totals)
        elif hyper.advantage == "grpo":
            totals = advantages_.grpo_advantages(scores=totals, epsilon=1e-4)
        advantages = masked.keep(
            jnp.broadcast_to(totals.reshape(-1, 1), mask.shape), mask
        )
    if hyper.whiten_advantages:
        advantages = masked.whiten(advantages, mask, shift_mean=True)
    return advantages, returns


def policy_loss_fn(policy, batch, *, num_tokens, num_sft_tokens, kl_coef, hyper: Hyper):
    """The share of L_ppo + beta_sft * L_sft of (experience, SFT batch), a part of a
    batch with `num_tokens` response tokens."""
    experience, sft = batch
    mask = experience.response_mask
    logprobs = policy_logprobs(policy, experience, hyper=hyper).logprobs
    clipped_loss = ppo.ppo_policy_loss
    if hyper.dual_clip:
        clipped_loss = functools.partial(
            ppo.dual_clip_policy_loss, dual_clip=hyper.dual_clip
        )
    out = clipped_loss(
        logprobs=logprobs,
        old_logprobs=experience.old_logprobs,
        advantages=experience.advantages,
        mask=mask,
        clip_range=hyper.clip_range,
    )
    metrics = {
        "loss/policy": Mean.of(out.loss, mask),
        "policy/approxkl": Mean.of(out.approxkl, mask),
        "policy/clipfrac": Mean.of(out.clipped, mask),
        "val/ratio": Mean.of(out.ratio, mask),
    }
    total = metrics["loss/policy"].total / num_tokens
    if hyper.kl_in_loss:
        token_kl = kl.k3(masked.keep(logprobs, mask), experience.ref_logprobs)
        metrics["loss/kl"] = Mean.of(token_kl, mask)
        total += kl_coef * metrics["loss/kl"].total / num_tokens
    if hyper.beta_sft:
        sft_logprobs = dialogue_logprobs(
            policy, sft, num_tokens=hyper.num_tokens, chunk_size=hyper.chunk_size
        )
        metrics["loss/sft"] = Mean.of(sft_loss(logprobs=sft_logprobs), sft.loss_mask)
        total += hyper.beta_sft * metrics["loss/sft"].total / num_sft_tokens
    return total, metrics


def value_loss_fn(value_model, experience: Experience, *, num_tokens, hyper: Hyper):
    """The share of the clipped value loss of a part of a batch."""
    mask = experience.response_mask
    out = ppo.ppo_value_loss(
        values=response_values(value_model, *one_response(experience))[:, 0],
        old_values=experience.old_values,
        returns=experience.returns,
        mask=mask,
        value_clip_range=hyper.value_clip_range,
    )
    loss = Mean.of(out.loss, mask)
    metrics = {"loss/value": loss, "val/clipfrac": Mean.of(out.clipped, mask)}
    return loss.total / num_tokens, metrics


def update(
    state: PPOState,
    experience: Experience,
    sft: SFTBatch | None,
    key: jax.Array,
    learning_rates: tuple[jax.Array, jax.Array],
    *,
    hyper: Hyper,
    policy_optimizer,
    value_optimizer,
) -> tuple[PPOState, dict]:
    """All epochs and minibatches of one iteration, in one scan.

    Args:
        sft: one SFT batch for each update, stacked: leaves [updates, b, T].
        learning_rates: the policy's and the value model's, float32 [updates] each.
    """

    def one_update(models, inputs):
        policy, value = models
        indices, sft, (policy_rate, value_rate) = inputs
        batch = jax.tree.map(lambda x: x[indices], experience)
        num_tokens = jnp.maximum(batch.response_mask.sum(), 1)
        policy_share = functools.partial(
            policy_loss_fn,
            num_tokens=num_tokens,
            num_sft_tokens=sft.loss_mask.sum() if sft else 1,
            kl_coef=state.kl_coef,
            hyper=hyper,
        )
        step_down = functools.partial(state_.update, microbatches=hyper.microbatches)
        policy, metrics = step_down(
            policy_share,
            policy,
            (batch, sft),
            optimizer=policy_optimizer.at(policy_rate),
        )
        if value is not None:
            value_share = functools.partial(
                value_loss_fn, num_tokens=num_tokens, hyper=hyper
            )
            value, value_metrics = step_down(
                value_share, value, batch, optimizer=value_optimizer.at(value_rate)
            )
            value_norm = value_metrics.pop("optim/grad_norm")
            metrics |= value_metrics | {"optim/value_grad_norm": value_norm}
        return (policy, value), metrics

    rows = experience.prompts.shape[0]
    keys = jax.random.split(key, hyper.ppo_epochs)
    order = jax.vmap(lambda k: jax.random.permutation(k, rows))(keys)
    indices = order.reshape(hyper.ppo_epochs * hyper.minibatches, -1)
    (policy, value), metrics = jax.lax.scan(
        one_update, (state.policy, state.value), (indices, sft, learning_rates)
    )
    first_ratio = jax.tree.map(lambda x: x[0], metrics["val/ratio"])
    metrics = jax.tree.map(lambda x: x.sum(0), metrics)
    metrics["val/ratio_first"] = first_ratio
    skipped = [model.skipped for model in (policy, value) if model is not None]
    metrics["optim/skipped"] = jnp.stack(skipped).max()
    return dataclasses.replace(state, policy=policy, value=value), metrics
