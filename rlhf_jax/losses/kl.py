"""The KL divergence from the reference: estimators, penalised rewards, coefficient.

Letters: B batch, R response.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float

from rlhf_jax.losses import masked


def k1(
    logprobs: Float[Array, "*S"], ref_logprobs: Float[Array, "*S"]
) -> Float[Array, "*S"]:
    """Estimate KL(policy || reference) of each token: log(pi / pi_ref).

    The estimate is unbiased on samples from the policy and may be negative. Its
    gradient is 0 on average, so use the estimate in rewards, not as a loss.
    http://joschu.net/blog/kl-approx.html
    """
    return logprobs.astype(jnp.float32) - ref_logprobs.astype(jnp.float32)


def k3(
    logprobs: Float[Array, "*S"], ref_logprobs: Float[Array, "*S"]
) -> Float[Array, "*S"]:
    """Estimate KL(policy || reference) of each token: s - 1 - log(s), s = pi_ref / pi.

    The estimate is unbiased on samples from the policy and never negative. As a loss,
    pass `masked.keep(...)` of both arguments: s overflows on garbage.
    http://joschu.net/blog/kl-approx.html
    """
    log_ratio = k1(logprobs, ref_logprobs)
    return jnp.expm1(-log_ratio) + log_ratio


def penalised_rewards(
    *,
    scores: Float[Array, " B"],
    logprobs: Float[Array, "B R"],
    ref_logprobs: Float[Array, "B R"],
    mask: Bool[Array, "B R"],
    kl_coef: Float[ArrayLike, ""],
) -> Float[Array, "B R"]:
    """Turn one score for each response into one reward for each token.

    reward_r = -kl_coef log(pi_r / pi_ref_r), plus the score at the last real token.

    Zeros where masked; a row without real tokens gets no reward, not even its score.
    The metric `objective/non_score_reward` reports the KL term.
    Ziegler et al. (2019), arXiv 1909.08593, equation 2; ChatGLM-RLHF, arXiv
    2404.00934, section 3.
    """
    penalty = kl_coef * k1(masked.keep(logprobs, mask), masked.keep(ref_logprobs, mask))
    real_from_here = jnp.cumsum(mask[:, ::-1], axis=1)[:, ::-1]
    last = mask & (real_from_here == 1)
    score = jnp.broadcast_to(scores[:, None], mask.shape)
    return lax.stop_gradient(masked.keep(score, last) - penalty)


def update_kl_coef(
    *,
    kl_coef: Float[ArrayLike, ""],
    kl: Float[ArrayLike, ""],
    target: Float[ArrayLike, ""],
    horizon: Float[ArrayLike, ""],
    batch_size: int,
) -> Float[Array, ""]:
    """Raise the coefficient when the KL is above its target, lower it when below.

    e = clip(kl / target - 1, -0.2, 0.2)
    kl_coef <- kl_coef (1 + e batch_size / horizon)

    kl (nats) is the mean over responses of the sum over tokens; horizon is a number of
    responses. An infinite horizon keeps the coefficient fixed. Ziegler et al. (2019),
    arXiv 1909.08593, section 2.2; the horizon is from the code of that paper.
    """
    error = jnp.clip(jnp.asarray(kl, jnp.float32) / target - 1.0, -0.2, 0.2)
    return lax.stop_gradient(kl_coef * (1.0 + error * batch_size / horizon))


def missing_end_penalty(
    *,
    scores: Float[Array, "*B"],
    ended: Bool[Array, "*B"],
    penalty: Float[ArrayLike, ""],
) -> Float[Array, "*B"]:
    """Subtract `penalty` from the score of a response that has no end token.

    The ChatGLM-RLHF paper does not mention such responses; this follows TRL's
    missing_eos_penalty.
    """
    scores = scores.astype(jnp.float32)
    return jnp.where(ended, scores, scores - penalty)


def clip_scores(
    scores: Float[Array, "*B"], limit: Float[ArrayLike, ""]
) -> Float[Array, "*B"]:
    """Clip scores to [-limit, limit]; an infinite limit clips nothing."""
    return jnp.clip(scores.astype(jnp.float32), -limit, limit)
