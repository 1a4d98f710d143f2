"""The metrics of PPO's experience: score, KL, length, and the sampler's distance.

Letters: B batch, R response.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from rlhf_jax.batches import Experience, Rollout
from rlhf_jax.losses import masked
from rlhf_jax.losses.ppo import explained_variance
from rlhf_jax.training.metrics import Mean

# The metric rollout/ratio_outside counts tokens whose probabilities under trainer and
# sampler differ by more than this fraction. It is half of the usual clip range: a gap
# of this size uses up much of the trust region before any update.
RATIO_TOLERANCE = 0.1


def experience_metrics(
    rollout: Rollout,
    experience: Experience,
    *,
    entropy: Float[Array, "B R"],
    scores: Float[Array, " B"],
    baselined: Float[Array, " B"],
    rewarded: Float[Array, " B"],
    sequence_kl: Float[Array, " B"],
    kl_coef: Float[Array, ""],
    weight_cap: float,
) -> dict:
    """Compute metrics of an experience: KL in nats per response, entropy in nats per
    token. Responses that have no part in the update count, but not in the metrics
    of the weights.

    Args:
        entropy: the entropy of the policy at each token, nats.
        scores: the score of each response.
        baselined: the scores minus the scores of the baseline.
        rewarded: the reward of each response, before the KL.
        sequence_kl: the KL to the reference of each response, nats.
        weight_cap: the cap of the weights that correct the sampler.
    """
    mask = rollout.response_mask
    # The difference between the trainer's and the sampler's log-probabilities, nats.
    gap = masked.keep(experience.old_logprobs, mask) - masked.keep(
        rollout.logprobs, mask
    )
    is_outside = jnp.abs(jnp.expm1(gap)) > RATIO_TOLERANCE
    learned = experience.response_mask
    metrics = {
        "objective/kl": Mean.of(sequence_kl),
        "objective/scores": Mean.of(scores),
        "objective/rlhf_reward": Mean.of(rewarded - kl_coef * sequence_kl),
        "objective/non_score_reward": Mean.of(-kl_coef * sequence_kl),
        "objective/baselined_scores": Mean.of(baselined),
        "objective/entropy": Mean.of(entropy, mask),
        "objective/kl_coef": Mean.of(kl_coef),
        "response/length_mean": Mean.of(mask.sum(-1)),
        "response/ended_fraction": Mean.of(rollout.ended),
        "response/learned_fraction": Mean.of(learned.any(-1)),
        "rollout/logprob_gap_mean": Mean.of(jnp.abs(gap), mask),
        "rollout/logprob_gap_max": jnp.abs(gap).max(),
        "rollout/ratio_outside": Mean.of(is_outside, mask),
    }
    if experience.weights is not None:
        weights = experience.weights
        metrics["rollout/weight_mean"] = Mean.of(weights, mask)
        metrics["rollout/weight_min"] = jnp.where(mask, weights, jnp.inf).min()
        metrics["rollout/weight_capped"] = Mean.of(weights >= weight_cap, mask)
    if experience.old_values is not None:
        metrics["val/explained_variance"] = explained_variance(
            values=experience.old_values, returns=experience.returns, mask=mask
        )
    return metrics
