"""PPO and its critic-free relatives: options, experience, losses and the train step.

ChatGLM-RLHF (arXiv 2404.00934), section 3. stages/ppo.py describes one iteration and
calls these functions.

Letters: B batch, R response.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rlhf_jax.algorithms.sft import mean_loss
from rlhf_jax.batches import Experience, Rollout, SFTBatch
from rlhf_jax.generation.scoring import (
    one_response,
    response_logprobs,
    response_scores,
    response_values,
)
from rlhf_jax.losses import advantages as estimators
from rlhf_jax.losses import kl, masked
from rlhf_jax.losses import ppo as losses
from rlhf_jax.models.heads import ScoreModel
from rlhf_jax.models.policy import Policy
from rlhf_jax.training.accumulate import in_parts
from rlhf_jax.training.metrics import Mean
from rlhf_jax.training.optimizers import Optimizer
from rlhf_jax.training.state import TrainState, optimizer_step

Batch = Experience  # the type of batch that `train_step` learns from

# The metric rollout/ratio_outside counts tokens whose probabilities under trainer and
# sampler differ by more than this fraction. It is half of the usual clip range: a gap
# of this size uses up much of the trust region before any update.
RATIO_TOLERANCE = 0.1


@dataclasses.dataclass(frozen=True)
class Hyper:
    """Options of PPO that the compiled programs depend on; configs/ppo.py explains
    them.

    `num_tokens` is the size of the tokenizer's vocabulary.
    """

    num_tokens: int
    temperature: float
    chunk_size: int
    advantage: str
    samples_per_prompt: int
    group_epsilon: float
    normalise_scores: bool
    whiten_rewards: bool
    whiten_advantages: bool
    missing_end_penalty: float
    score_clip: float
    kl_coef: float
    kl_in_loss: bool
    kl_target: float
    kl_horizon: float
    gamma: float
    lam: float
    clip_range: float
    dual_clip: float
    loss_aggregation: str
    value_clip_range: float
    beta_sft: float
    ppo_epochs: int
    minibatches: int
    microbatches: int

    @classmethod
    def from_config(cls, config, num_tokens: int) -> "Hyper":
        return cls(
            num_tokens=num_tokens,
            temperature=config.temperature,
            chunk_size=config.chunk_size,
            advantage=config.advantage,
            samples_per_prompt=config.samples_per_prompt,
            group_epsilon=config.group_epsilon,
            normalise_scores=config.normalise_scores,
            whiten_rewards=config.whiten_rewards,
            whiten_advantages=config.whiten_advantages,
            missing_end_penalty=config.missing_end_penalty,
            score_clip=config.score_clip,
            kl_coef=config.kl_coef,
            kl_in_loss=config.kl_in_loss,
            kl_target=config.kl_target,
            kl_horizon=config.kl_horizon,
            gamma=config.gamma,
            lam=config.lam,
            clip_range=config.clip_range,
            dual_clip=config.dual_clip,
            loss_aggregation=config.loss_aggregation,
            value_clip_range=config.value_clip_range,
            beta_sft=config.beta_sft,
            ppo_epochs=config.ppo_epochs,
            minibatches=config.minibatches,
            microbatches=config.microbatches,
        )

    @property
    def has_critic(self) -> bool:
        """True if the advantage needs a value model."""
        return self.advantage == "gae"

    @property
    def num_updates(self) -> int:
        """The number of optimizer steps in one iteration."""
        return self.ppo_epochs * self.minibatches


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PPOState:
    """Training state: the policy, the value model (None without a critic), the KL
    coefficient, and the moments of all scores so far (for `normalise_scores`)."""

    policy: TrainState
    value: TrainState | None
    kl_coef: Float[Array, ""]
    moments: estimators.RunningMoments

    @classmethod
    def create(
        cls,
        policy,
        value,
        *,
        policy_optimizer: Optimizer,
        value_optimizer: Optimizer,
        hyper: Hyper,
    ) -> "PPOState":
        """Create the initial state; `value` is None without a critic."""
        return cls(
            policy=TrainState.create(policy, policy_optimizer),
            value=None if value is None else TrainState.create(value, value_optimizer),
            kl_coef=jnp.float32(hyper.kl_coef),
            moments=estimators.init_moments(),
        )


def with_opt_states(state: PPOState, change: Callable[[dict], dict]) -> PPOState:
    """Return the state with `change` applied to each model's optimizer state."""

    def changed(trained: TrainState | None) -> TrainState | None:
        if trained is None:
            return None
        return dataclasses.replace(trained, opt_state=change(trained.opt_state))

    return dataclasses.replace(
        state, policy=changed(state.policy), value=changed(state.value)
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Frozen:
    """Frozen models: the reference of the KL, and the reward model (None where all
    rewards are functions)."""

    reference: Policy
    reward: ScoreModel | None


class ModelOutputs(NamedTuple):
    """Outputs of all models on a rollout; zeros where masked, except in `entropy`."""

    old_logprobs: Float[Array, "B R"]
    entropy: Float[Array, "B R"]
    ref_logprobs: Float[Array, "B R"]
    scores: Float[Array, " B"] | None  # None without a reward model
    values: Float[Array, "B R"] | None  # None without a critic


def policy_logprobs(policy: Policy, batch: Rollout | Experience, *, hyper: Hyper):
    """Compute log-probability and entropy [B, R] of the response tokens, at the
    temperature of the rollout."""
    out = response_logprobs(
        policy,
        *one_response(batch),
        temperature=hyper.temperature,
        num_tokens=hyper.num_tokens,
        chunk_size=hyper.chunk_size,
    )
    return out._replace(logprobs=out.logprobs[:, 0], entropy=out.entropy[:, 0])


def run_models(
    state: PPOState, frozen: Frozen, rollout: Rollout, *, hyper: Hyper
) -> ModelOutputs:
    """Run one forward pass of each model over a rollout, as many rows at a time as in
    the update, since that many fit in memory."""
    return in_parts(
        functools.partial(forward_models, state=state, frozen=frozen, hyper=hyper),
        rollout,
        parts=hyper.minibatches * hyper.microbatches,
    )


def forward_models(
    rollout: Rollout, *, state: PPOState, frozen: Frozen, hyper: Hyper
) -> ModelOutputs:
    """Run one forward pass of each model over some rows of a rollout."""
    mask = rollout.response_mask
    old = policy_logprobs(state.policy.model, rollout, hyper=hyper)
    ref = policy_logprobs(frozen.reference, rollout, hyper=hyper)
    scores = values = None
    if frozen.reward is not None:
        scores = response_scores(frozen.reward, *one_response(rollout))[:, 0]
    if state.value is not None:
        values = response_values(state.value.model, *one_response(rollout))[:, 0]
        values = masked.keep(values, mask)
    return ModelOutputs(
        old_logprobs=masked.keep(old.logprobs, mask),
        entropy=old.entropy,
        ref_logprobs=masked.keep(ref.logprobs, mask),
        scores=scores,
        values=values,
    )


def make_experience(
    state: PPOState,
    rollout: Rollout,
    outputs: ModelOutputs,
    scores: Float[Array, " B"],
    baseline_scores: Float[Array, " B"],
    *,
    hyper: Hyper,
) -> tuple[Experience, dict, dict]:
    """Compute everything the update needs; the update changes none of it.

    Args:
        outputs: the result of `run_models` on the rollout.
        scores: the score of each response: the sum of all its rewards by their weights.
        baseline_scores: the score of another answer to each row's prompt (the
            reference's, or the policy's greedy answer); zeros for no baseline.

    Returns:
        The experience, the changed fields of the state by name, and metrics.
    """
    mask = rollout.response_mask
    # The reward of a response is its score minus the baseline's score.
    baselined = estimators.reference_baseline(
        scores=scores, reference_scores=baseline_scores
    )
    rewarded, moments = baselined, state.moments
    if hyper.normalise_scores:
        all_rows = jnp.ones(baselined.shape, bool)
        moments = estimators.update_moments(moments, rewarded, all_rows)
        rewarded = estimators.normalise(rewarded, moments)
    rewarded = kl.missing_end_penalty(
        scores=rewarded, ended=rollout.ended, penalty=hyper.missing_end_penalty
    )
    rewarded = kl.clip_scores(rewarded, hyper.score_clip)

    # The reward of a token is minus its KL penalty, plus the response's reward at the
    # last token.
    rewards = kl.penalised_rewards(
        scores=rewarded,
        logprobs=outputs.old_logprobs,
        ref_logprobs=outputs.ref_logprobs,
        mask=mask,
        kl_coef=0.0 if hyper.kl_in_loss else state.kl_coef,
    )
    advantages, returns = estimate_advantages(
        rewards, outputs.values, mask, hyper=hyper
    )
    experience = Experience(
        prompts=rollout.prompts,
        prompt_mask=rollout.prompt_mask,
        responses=rollout.responses,
        response_mask=mask,
        old_logprobs=outputs.old_logprobs,
        ref_logprobs=outputs.ref_logprobs,
        advantages=advantages,
        old_values=outputs.values,
        returns=returns,
    )

    sequence_kl = kl.k1(outputs.old_logprobs, outputs.ref_logprobs).sum(-1)
    changes = {"kl_coef": state.kl_coef, "moments": moments}
    if hyper.kl_target:
        changes["kl_coef"] = kl.update_kl_coef(
            kl_coef=state.kl_coef,
            kl=sequence_kl.mean(),
            target=hyper.kl_target,
            horizon=hyper.kl_horizon,
            batch_size=len(sequence_kl),
        )
    # A non-finite score would stay in the running statistics for ever.
    finite = jnp.isfinite(baselined).all() & jnp.isfinite(sequence_kl).all()
    changes = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old),
        changes,
        {"kl_coef": state.kl_coef, "moments": state.moments},
    )
    metrics = experience_metrics(
        rollout,
        outputs,
        returns,
        scores=scores,
        baselined=baselined,
        rewarded=rewarded,
        sequence_kl=sequence_kl,
        kl_coef=state.kl_coef,
    )
    return experience, changes, metrics


def estimate_advantages(
    rewards: Float[Array, "B R"],
    values: Float[Array, "B R"] | None,
    mask: Bool[Array, "B R"],
    *,
    hyper: Hyper,
) -> tuple[Float[Array, "B R"], Float[Array, "B R"] | None]:
    """Estimate advantages, and the returns that the value model learns (None without a
    value model).

    Raises:
        ValueError: `hyper.advantage` names no estimator.
    """
    if hyper.advantage == "gae":
        if hyper.whiten_rewards:
            rewards = masked.whiten(rewards, mask, shift_mean=False)
        gae = functools.partial(estimators.gae, gamma=hyper.gamma, lam=hyper.lam)
        advantages, returns = jax.vmap(gae)(rewards=rewards, values=values, mask=mask)
    else:
        # Every token has the advantage of its response. A response's reward is the sum
        # of its tokens' rewards: [prompts, samples_per_prompt].
        totals, returns = rewards.sum(-1).reshape(-1, hyper.samples_per_prompt), None
        if hyper.advantage == "rloo":
            totals = estimators.rloo_advantages(scores=totals)
        elif hyper.advantage == "grpo":
            totals = estimators.grpo_advantages(
                scores=totals, epsilon=hyper.group_epsilon
            )
        elif hyper.advantage == "remax":
            pass  # `reference_baseline` has subtracted the baseline already
        else:
            raise ValueError(f"{hyper.advantage=} must be gae, rloo, grpo or remax.")
        advantages = masked.keep(
            jnp.broadcast_to(totals.reshape(-1, 1), mask.shape), mask
        )
    if hyper.whiten_advantages:
        advantages = masked.whiten(advantages, mask, shift_mean=True)
    return advantages, returns


def experience_metrics(
    rollout: Rollout,
    outputs: ModelOutputs,
    returns: Float[Array, "B R"] | None,
    *,
    scores: Float[Array, " B"],
    baselined: Float[Array, " B"],
    rewarded: Float[Array, " B"],
    sequence_kl: Float[Array, " B"],
    kl_coef: Float[Array, ""],
) -> dict:
    """Compute metrics of an experience: KL in nats per response, entropy in nats per
    token."""
    mask = rollout.response_mask
    # The difference between the trainer's and the sampler's log-probabilities, nats.
    gap = outputs.old_logprobs - masked.keep(rollout.logprobs, mask)
    is_outside = jnp.abs(jnp.expm1(gap)) > RATIO_TOLERANCE
    metrics = {
        "objective/kl": Mean.of(sequence_kl),
        "objective/scores": Mean.of(scores),
        "objective/rlhf_reward": Mean.of(rewarded - kl_coef * sequence_kl),
        "objective/non_score_reward": Mean.of(-kl_coef * sequence_kl),
        "objective/baselined_scores": Mean.of(baselined),
        "objective/entropy": Mean.of(outputs.entropy, mask),
        "objective/kl_coef": Mean.of(kl_coef),
        "response/length_mean": Mean.of(mask.sum(-1)),
        "response/ended_fraction": Mean.of(rollout.ended),
        "rollout/logprob_gap_mean": Mean.of(jnp.abs(gap), mask),
        "rollout/logprob_gap_max": jnp.abs(gap).max(),
        "rollout/ratio_outside": Mean.of(is_outside, mask),
    }
    if outputs.values is not None:
        metrics["val/explained_variance"] = losses.explained_variance(
            values=outputs.values, returns=returns, mask=mask
        )
    return metrics


def aggregate(
    x: Float[Array, "B R"], mask: Bool[Array, "B R"], *, hyper: Hyper
) -> Mean:
    """Average a loss in the way that `hyper.loss_aggregation` names.

    "token": over all tokens, so a long response weighs more than a short one.
    "response": over the tokens of each response, then over the responses that have a
    token (GRPO: arXiv 2402.03300, equation 3).
    """
    if hyper.loss_aggregation == "response":
        return Mean.of(jax.vmap(masked.mean)(x, mask), mask.any(-1))
    return Mean.of(x, mask)


def aggregate_count(mask: Bool[Array, "B R"], *, hyper: Hyper) -> jax.Array:
    """Return the divisor of `aggregate` over a whole minibatch, at least 1."""
    counted = mask.any(-1) if hyper.loss_aggregation == "response" else mask
    return jnp.maximum(counted.sum(), 1)


def policy_loss_fn(
    policy: Policy,
    inputs: tuple[Experience, SFTBatch | None],
    *,
    count: jax.Array,
    num_sft_tokens: jax.Array | None,
    kl_coef: jax.Array | float,
    hyper: Hyper,
) -> tuple[jax.Array, dict[str, Mean]]:
    """Return the contribution of a part of a minibatch to L_ppo + beta_sft * L_sft, and
    metrics.

    Args:
        inputs: the experience, and the SFT batch (None: no SFT term).
        count: `aggregate_count` of the whole minibatch.
        num_sft_tokens: the number of tokens that carry loss in the whole SFT batch;
            None without the SFT term.
        kl_coef: the KL coefficient in the loss (used if `hyper.kl_in_loss`).
    """
    experience, sft_batch = inputs
    mask = experience.response_mask
    logprobs = policy_logprobs(policy, experience, hyper=hyper).logprobs
    clipped_loss = losses.ppo_policy_loss
    if hyper.dual_clip:
        clipped_loss = functools.partial(
            losses.dual_clip_policy_loss, dual_clip=hyper.dual_clip
        )
    out = clipped_loss(
        logprobs=logprobs,
        old_logprobs=experience.old_logprobs,
        advantages=experience.advantages,
        mask=mask,
        clip_range=hyper.clip_range,
    )
    policy_loss = aggregate(out.loss, mask, hyper=hyper)
    total = policy_loss.total / count
    metrics = {
        "loss/policy": policy_loss,
        "policy/approxkl": Mean.of(out.approxkl, mask),
        "policy/clipfrac": Mean.of(out.clipped, mask),
        "val/ratio": Mean.of(out.ratio, mask),
    }
    if hyper.kl_in_loss:
        token_kl = kl.k3(masked.keep(logprobs, mask), experience.ref_logprobs)
        kl_loss = aggregate(token_kl, mask, hyper=hyper)
        total += kl_coef * kl_loss.total / count
        metrics["loss/kl"] = kl_loss
    if sft_batch is not None:
        sft_loss = mean_loss(
            policy, sft_batch, num_tokens=hyper.num_tokens, chunk_size=hyper.chunk_size
        )
        total += hyper.beta_sft * sft_loss.total / num_sft_tokens
        metrics["loss/sft"] = sft_loss
    return total, metrics


def value_loss_fn(
    value_model, experience: Experience, *, num_tokens: jax.Array, hyper: Hyper
) -> tuple[jax.Array, dict[str, Mean]]:
    """Return the contribution of a part of a minibatch to the clipped value loss, and
    metrics.

    Args:
        num_tokens: the number of response tokens in the whole minibatch.
    """
    mask = experience.response_mask
    out = losses.ppo_value_loss(
        values=response_values(value_model, *one_response(experience))[:, 0],
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


def train_step(
    state: PPOState,
    experience: Experience,
    sft: SFTBatch | None,
    key: jax.Array,
    learning_rates: tuple[Float[Array, " U"], Float[Array, " U"]],
    *,
    policy_optimizer: Optimizer,
    value_optimizer: Optimizer,
    hyper: Hyper,
) -> tuple[PPOState, dict]:
    """Run all epochs and minibatches of one iteration, in one scan of U updates.

    Args:
        sft: one SFT batch for each update, stacked: leaves [U, b, T].
        key: the random key of the order of the rows in each epoch.
        learning_rates: the learning rates of the policy and of the value model.
    """

    def one_update(models, inputs):
        policy, value = models
        rows, sft_batch, (policy_rate, value_rate) = inputs
        batch = jax.tree.map(lambda x: x[rows], experience)
        policy_share = functools.partial(
            policy_loss_fn,
            count=aggregate_count(batch.response_mask, hyper=hyper),
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
            metrics |= value_metrics | {"optim/value_grad_norm": value_norm}
        return (policy, value), metrics

    num_rows = experience.prompts.shape[0]
    keys = jax.random.split(key, hyper.ppo_epochs)
    orders = jax.vmap(lambda k: jax.random.permutation(k, num_rows))(keys)
    minibatches = orders.reshape(hyper.num_updates, -1)
    (policy, value), metrics = jax.lax.scan(
        one_update, (state.policy, state.value), (minibatches, sft, learning_rates)
    )
    first_ratio = jax.tree.map(lambda x: x[0], metrics["val/ratio"])
    metrics = jax.tree.map(lambda x: x.sum(0), metrics)
    metrics["val/ratio_first"] = first_ratio
    skipped = [model.skipped for model in (policy, value) if model is not None]
    metrics["optim/skipped"] = jnp.stack(skipped).max()
    return dataclasses.replace(state, policy=policy, value=value), metrics
