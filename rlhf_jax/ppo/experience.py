"""The experience of PPO: rewards of tokens, advantages, and the weights that correct
the sampler.

Letters: B batch, R response.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rlhf_jax.batches import Experience, Rollout
from rlhf_jax.losses import advantages as estimators
from rlhf_jax.losses import correction, kl, masked
from rlhf_jax.ppo.forward import ModelOutputs
from rlhf_jax.ppo.options import ADVANTAGES, Hyper
from rlhf_jax.ppo.state import PPOState
from rlhf_jax.training.ppo_metrics import experience_metrics


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
        routing=rollout.routing,
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


def differing_groups(
    scores: Float[Array, " B"], ended: Bool[Array, " B"], *, hyper: Hyper
) -> Bool[Array, " prompts"]:
    """Return True for each prompt whose responses differ in their reward, so that there
    is something to learn (dynamic sampling: DAPO, arXiv 2503.14476, section 3.2)."""
    rewards = kl.missing_end_penalty(
        scores=scores, ended=ended, penalty=hyper.missing_end_penalty
    )
    return estimators.groups_differ(rewards.reshape(-1, hyper.samples_per_prompt))
