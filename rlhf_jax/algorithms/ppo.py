"""PPO and its critic-free relatives: options, experience, losses and the train step.

ChatGLM-RLHF (arXiv 2404.00934), section 3. stages/ppo.py describes one iteration and
calls these functions.

Letters: B batch, R response.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.algorithms.sft import mean_loss
from rlhf_jax.batches import Experience, PackedRows, Rollout, SFTBatch
from rlhf_jax.generation.scoring import (
    one_response,
    packed_logprobs,
    packed_scores,
    packed_values,
    response_logprobs,
    response_scores,
    response_values,
)
from rlhf_jax.losses import advantages as estimators
from rlhf_jax.losses import aggregation, correction, kl, masked
from rlhf_jax.losses import ppo as losses
from rlhf_jax.models.adapters import base_parts, join, own_part
from rlhf_jax.models.heads import ScoreModel
from rlhf_jax.models.policy import Policy
from rlhf_jax.training.accumulate import in_parts
from rlhf_jax.training.metrics import Mean
from rlhf_jax.training.optimizers import Optimizer
from rlhf_jax.training.ppo_metrics import experience_metrics
from rlhf_jax.training.state import TrainState, optimizer_step

Batch = Experience  # the type of batch that `train_step` learns from
ADVANTAGES = ("gae", "rloo", "grpo", "remax", "reinforce_pp")


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
    max_response_tokens: int
    group_std: bool
    group_epsilon: float
    normalise_scores: bool
    whiten_rewards: bool
    whiten_advantages: bool
    missing_end_penalty: float
    mask_overlong: bool
    score_clip: float
    kl_coef: float
    kl_in_loss: bool
    kl_target: float
    kl_horizon: float
    reference_rate: float
    rollout_param_dtype: str
    prompts_ahead: int
    rollout_correction: str
    rollout_weight_cap: float
    rollout_error_limit: float
    gamma: float
    lam: float
    objective: str
    clip_range: float
    clip_range_high: float
    dual_clip: float
    entropy_coef: float
    loss_aggregation: str
    value_clip_range: float
    beta_sft: float
    ppo_epochs: int
    minibatches: int
    microbatches: int

    @classmethod
    def from_config(cls, config, num_tokens: int) -> "Hyper":
        names = [field.name for field in dataclasses.fields(cls)]
        names.remove("num_tokens")
        options = {name: getattr(config, name) for name in names}
        return cls(num_tokens=num_tokens, **options)

    @property
    def has_critic(self) -> bool:
        """True if the advantage needs a value model."""
        return self.advantage == "gae"

    @property
    def compares_groups(self) -> bool:
        """True if the advantage compares the responses to one prompt."""
        return self.advantage in ("rloo", "grpo")

    @property
    def correction_level(self) -> str | None:
        """The level of the weights that correct the sampler's distance from the
        trainer ("token" or "response"); None corrects nothing."""
        if self.rollout_correction == "auto":
            is_same = self.rollout_param_dtype == "same" and not self.prompts_ahead
            return None if is_same else "token"
        return None if self.rollout_correction == "none" else self.rollout_correction

    @property
    def num_updates(self) -> int:
        """The number of optimizer steps in one iteration."""
        return self.ppo_epochs * self.minibatches


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PPOState:
    """Training state: the policy, the value model (None without a critic), a moving
    reference (None where `Frozen` holds it), the KL coefficient, and the moments of all
    scores so far (for `normalise_scores`)."""

    policy: TrainState
    value: TrainState | None
    reference: Policy | None
    kl_coef: Float[Array, ""]
    moments: estimators.RunningMoments

    @classmethod
    def create(
        cls,
        policy,
        value,
        reference=None,
        *,
        policy_optimizer: Optimizer,
        value_optimizer: Optimizer,
        hyper: Hyper,
    ) -> "PPOState":
        """Create the initial state; `value` is None without a critic, and `reference`
        where the reference does not move."""
        return cls(
            policy=TrainState.create(policy, policy_optimizer),
            value=None if value is None else TrainState.create(value, value_optimizer),
            reference=reference,
            **first_numbers(hyper),
        )


def first_numbers(hyper: Hyper) -> dict:
    """Return the first values of the fields of PPOState that belong to no model."""
    return {
        "kl_coef": jnp.float32(hyper.kl_coef),
        "moments": estimators.init_moments(),
    }


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Frozen:
    """Frozen models: the reference of the KL (None where it moves), and the reward
    model (None where all rewards are functions)."""

    reference: Policy | None
    reward: ScoreModel | None


class ModelOutputs(NamedTuple):
    """Outputs of all models on a rollout; zeros where masked, except in `entropy`."""

    old_logprobs: Float[Array, "B R"]
    entropy: Float[Array, "B R"]
    ref_logprobs: Float[Array, "B R"]
    scores: Float[Array, " B"] | None  # None without a reward model
    values: Float[Array, "B R"] | None  # None without a critic


def policy_logprobs(
    policy: Policy,
    batch: Rollout | Experience,
    rows: PackedRows | None = None,
    *,
    hyper: Hyper,
):
    """Compute log-probability and entropy [B, R] of the response tokens, at the
    temperature of the rollout.

    Args:
        rows: the batch as packed rows, whose slots are then B.
    """
    options = {
        "temperature": hyper.temperature,
        "num_tokens": hyper.num_tokens,
        "chunk_size": hyper.chunk_size,
    }
    if rows is None:
        out = response_logprobs(policy, *one_response(batch), **options)
    else:
        width = batch.responses.shape[-1]
        out = packed_logprobs(policy, rows, width=width, **options)
    return jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), out)


def run_models(
    state: PPOState,
    frozen: Frozen,
    rollout: Rollout,
    packed: PackedRows | None = None,
    *,
    hyper: Hyper,
) -> ModelOutputs:
    """Run one forward pass of each model over a rollout, as many rows at a time as in
    the update, since that many fit in memory.

    Args:
        packed: the rollout as packed rows; None runs its own rows.
    """
    forward = functools.partial(forward_models, state=state, frozen=frozen, hyper=hyper)
    parts = hyper.minibatches * hyper.microbatches
    if packed is None:
        return in_parts(lambda part: forward(part, None), rollout, parts=parts)
    num_rows, num_slots = packed.slots.shape
    part_of_rollout = jax.tree.map(lambda x: _in_slots(x, packed), rollout)
    out = in_parts(
        lambda part: jax.tree.map(
            lambda x: x.reshape(-1, num_slots, *x.shape[1:]), forward(*part)
        ),
        (part_of_rollout, packed),
        parts=parts,
    )
    # The slot of each row of the rollout.
    place = jnp.zeros(len(rollout.ended), jnp.int32)
    place = place.at[packed.slots.reshape(-1)].set(
        jnp.arange(num_rows * num_slots), mode="drop"
    )
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[place], out)


def _in_slots(x: Array, packed: PackedRows) -> Array:
    """Return for every slot of packed rows its row of x: [B, ...] -> [N, S, ...]."""
    return x.at[packed.slots].get(mode="clip")


def in_packed_rows(experience: Experience, packed: PackedRows) -> Experience:
    """Return an experience [B, ...] as the packed rows that hold some of it, with
    leaves [N, S, ...]."""
    taken = jax.tree.map(lambda x: _in_slots(x, packed), experience)
    is_used = packed.slots < len(experience.prompts)
    mask = taken.response_mask & is_used[..., None]
    return dataclasses.replace(taken, response_mask=mask, packed=packed)


def _flat(experience: Experience) -> Experience:
    """Return the responses of packed rows one by one: [N, S, ...] -> [N S, ...]."""
    if experience.packed is None:
        return experience
    bare = dataclasses.replace(experience, packed=None)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), bare)
    return dataclasses.replace(flat, packed=experience.packed)


def forward_models(
    rollout: Rollout,
    packed: PackedRows | None,
    *,
    state: PPOState,
    frozen: Frozen,
    hyper: Hyper,
) -> ModelOutputs:
    """Run one forward pass of each model over some rows of a rollout, or over packed
    rows that hold it."""
    if packed is not None:
        rollout = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rollout)
    mask = rollout.response_mask
    old = policy_logprobs(state.policy.model, rollout, packed, hyper=hyper)
    reference = frozen.reference if state.reference is None else state.reference
    ref = policy_logprobs(reference, rollout, packed, hyper=hyper)
    scores = values = None
    if frozen.reward is not None and packed is None:
        scores = response_scores(frozen.reward, *one_response(rollout))[:, 0]
    elif frozen.reward is not None:
        scores = packed_scores(frozen.reward, packed).reshape(-1)
    if state.value is not None:
        values = masked.keep(_values(state.value.model, rollout, packed), mask)
    return ModelOutputs(
        old_logprobs=masked.keep(old.logprobs, mask),
        entropy=old.entropy,
        ref_logprobs=masked.keep(ref.logprobs, mask),
        scores=scores,
        values=values,
    )


def _values(value_model, batch: Rollout | Experience, packed: PackedRows | None):
    """Compute the value of the state before each response token: float32 [B, R]."""
    if packed is None:
        return response_values(value_model, *one_response(batch))[:, 0]
    width = batch.responses.shape[-1]
    values = packed_values(value_model, packed, width=width)
    return values.reshape(-1, width)


def make_experience(
    state: PPOState,
    rollout: Rollout,
    outputs: ModelOutputs,
    scores: Float[Array, " B"],
    baseline_scores: Float[Array, " B"],
    wanted: Bool[Array, " B"] | None = None,
    *,
    hyper: Hyper,
) -> tuple[Experience, dict, dict]:
    """Compute everything the update needs; the update changes none of it.

    Args:
        outputs: the result of `run_models` on the rollout.
        scores: the score of each response: the sum of all its rewards by their weights.
        baseline_scores: the score of another answer to each row's prompt (the
            reference's, or the policy's greedy answer); zeros for no baseline.
        wanted: False for responses that have no part in the update, such as those of
            a group whose scores are all equal; None for all.

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
    learned, weights = correct_sampler(rollout, outputs.old_logprobs, hyper=hyper)
    if wanted is not None:
        learned &= wanted
    if hyper.mask_overlong:
        learned &= rollout.ended
    if hyper.whiten_advantages:
        advantages = masked.whiten(advantages, mask & learned[:, None], shift_mean=True)
    experience = Experience(
        prompts=rollout.prompts,
        prompt_mask=rollout.prompt_mask,
        responses=rollout.responses,
        response_mask=mask & learned[:, None],
        old_logprobs=outputs.old_logprobs,
        ref_logprobs=outputs.ref_logprobs,
        advantages=advantages,
        weights=weights,
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
        experience,
        entropy=outputs.entropy,
        scores=scores,
        baselined=baselined,
        rewarded=rewarded,
        sequence_kl=sequence_kl,
        kl_coef=state.kl_coef,
        weight_cap=hyper.rollout_weight_cap,
    )
    return experience, changes, metrics


def differing_groups(
    scores: Float[Array, " B"], ended: Bool[Array, " B"], *, hyper: Hyper
) -> Bool[Array, " prompts"]:
    """Return True for each prompt whose responses differ in their reward, so that there
    is something to learn (dynamic sampling: DAPO, arXiv 2503.14476, section 3.2)."""
    rewards = kl.missing_end_penalty(
        scores=scores, ended=ended, penalty=hyper.missing_end_penalty
    )
    return estimators.groups_differ(rewards.reshape(-1, hyper.samples_per_prompt))


def correct_sampler(
    rollout: Rollout, old_logprobs: Float[Array, "B R"], *, hyper: Hyper
) -> tuple[Bool[Array, " B"], Float[Array, "B R"] | None]:
    """Return which responses the sampler's probabilities are close enough for, and the
    weight of each token in the policy loss (None without a correction)."""
    if hyper.correction_level is None:
        return jnp.ones(rollout.ended.shape, bool), None
    both = {
        "logprobs": old_logprobs,
        "sampler_logprobs": rollout.logprobs,
        "mask": rollout.response_mask,
    }
    # An error of NaN is not left out: the update is then refused, and counted.
    is_close = ~(correction.sampler_error(**both) > hyper.rollout_error_limit)
    weights = correction.sampler_weights(
        **both, level=hyper.correction_level, cap=hyper.rollout_weight_cap
    )
    return is_close, weights


def estimate_advantages(
    rewards: Float[Array, "B R"],
    values: Float[Array, "B R"] | None,
    mask: Bool[Array, "B R"],
    *,
    hyper: Hyper,
) -> tuple[Float[Array, "B R"], Float[Array, "B R"] | None]:
    """Estimate advantages, and the returns that the value model learns (None without a
    value model); `make_experience` whitens the advantages where that is wanted.

    Raises:
        ValueError: `hyper.advantage` names no estimator.
    """
    if hyper.advantage == "gae":
        if hyper.whiten_rewards:
            rewards = masked.whiten(rewards, mask, shift_mean=False)
        gae = functools.partial(estimators.gae, gamma=hyper.gamma, lam=hyper.lam)
        return jax.vmap(gae)(rewards=rewards, values=values, mask=mask)
    if hyper.advantage == "reinforce_pp":
        advantages = estimators.reinforce_pp_advantages(
            rewards=rewards, mask=mask, gamma=hyper.gamma
        )
        return advantages, None
    # Every token has the advantage of its response. A response's reward is the sum of
    # its tokens' rewards: [prompts, samples_per_prompt].
    totals = rewards.sum(-1).reshape(-1, hyper.samples_per_prompt)
    if hyper.advantage == "rloo":
        totals = estimators.rloo_advantages(scores=totals)
    elif hyper.advantage == "grpo":
        totals = estimators.grpo_advantages(
            scores=totals, divide_by_std=hyper.group_std, epsilon=hyper.group_epsilon
        )
    elif hyper.advantage != "remax":  # whose baseline is subtracted already
        raise ValueError(f"{hyper.advantage=} must be one of {', '.join(ADVANTAGES)}.")
    return masked.keep(jnp.broadcast_to(totals.reshape(-1, 1), mask.shape), mask), None


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
    current = policy_logprobs(policy, experience, experience.packed, hyper=hyper)
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
        values=_values(value_model, experience, experience.packed),
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
            metrics |= value_metrics | {"optim/value_grad_norm": value_norm}
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


def move_reference(reference: Policy, policy: Policy, *, rate: float) -> Policy:
    """Move the reference's weights towards the policy's: the exponential moving average

    reference <- reference + rate (policy - reference).

    A rate of 0 leaves the reference where it is; with 1 it becomes the policy. WARP,
    Ramé et al. (2024), arXiv 2406.16768, section 3.1.
    """
    return jax.tree.map(
        lambda old, new: old + rate * (new - old).astype(old.dtype), reference, policy
    )
