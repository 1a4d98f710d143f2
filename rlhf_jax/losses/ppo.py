"""Policy and value losses of PPO and its relatives, one number for each token.

Losses are 0 where masked (and the ratio is 1): divide the sum of a loss by a count of
real tokens or responses (losses/aggregation.py), never by the size of the array. Old
log-probabilities, old values, advantages and returns are targets: no gradient flows to
the targets.

Letters: B batch, R response.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float

from rlhf_jax.losses import masked

OBJECTIVES = ("ppo", "gspo", "cispo")


class PolicyLoss(NamedTuple):
    loss: Float[Array, "*B R"]
    ratio: Float[Array, "*B R"]  # pi / pi_old; with "gspo" that of the response
    clipped: Bool[Array, "*B R"]  # True where the clip holds the ratio
    approxkl: Float[Array, "*B R"]  # log(pi / pi_old)^2 / 2, as TRL's policy/approxkl


class ValueLoss(NamedTuple):
    loss: Float[Array, "*S"]
    clipped: Bool[Array, "*S"]  # True where the clip stops the gradient


def policy_loss(
    *,
    logprobs: Float[Array, "*B R"],
    old_logprobs: Float[Array, "*B R"],
    advantages: Float[Array, "*B R"],
    mask: Bool[Array, "*B R"],
    objective: str,
    clip_range: Float[ArrayLike, ""],
    clip_range_high: Float[ArrayLike, ""],
    dual_clip: Float[ArrayLike, ""],
) -> PolicyLoss:
    """Raise the probability of tokens with a positive advantage, within a trust region
    around the old policy.

    With held(ratio) = clip(ratio, 1 - clip_range, 1 + clip_range_high):

    "ppo": max(-A ratio, -A held(ratio)), ratio = pi / pi_old of the token.
        Schulman et al. (2017), arXiv 1707.06347, equation 7. A clip_range_high above
        clip_range is clip-higher: DAPO, arXiv 2503.14476, section 3.1.
    "gspo": the same with the ratio of the response, the geometric mean of its tokens'
        ratios, so one clip decides for all tokens of a response. The gradient of a
        token is weighted by its own advantage. GSPO, arXiv 2507.18071, section 4.3
        (GSPO-token); the ranges of that paper are 3e-4 and 4e-4.
    "cispo": -A held(ratio) log(pi), with no gradient through the held ratio: the clip
        bounds the weight of a token and removes no token. CISPO (MiniMax-M1), arXiv
        2506.13585, section 3.1, whose lower end is open: clip_range 1.

    Where A < 0, the losses of "ppo" and "gspo" are at most -dual_clip A (Ye et al.,
    2020, arXiv 1912.09729); dual_clip > 1, inf for no bound; "cispo" has no use for it.

    Raises:
        ValueError: `objective` names no loss.
    """
    old_logprobs = lax.stop_gradient(old_logprobs)
    log_ratio = _log_ratio(logprobs, old_logprobs, mask)
    approxkl = 0.5 * log_ratio**2
    if objective == "gspo":
        log_ratio = _response_log_ratio(log_ratio, mask)
    elif objective not in OBJECTIVES:
        raise ValueError(f"{objective=} must be one of {', '.join(OBJECTIVES)}.")
    ratio = jnp.exp(log_ratio)
    held_ratio = jnp.clip(ratio, 1.0 - clip_range, 1.0 + clip_range_high)
    advantages = lax.stop_gradient(masked.keep(advantages, mask))
    if objective == "cispo":
        weight = lax.stop_gradient(held_ratio)
        return PolicyLoss(
            loss=-advantages * weight * masked.keep(logprobs, mask),
            ratio=ratio,
            clipped=held_ratio != ratio,
            approxkl=approxkl,
        )
    free, held = -advantages * ratio, -advantages * held_ratio
    loss = jnp.maximum(free, held)
    bound = -dual_clip * advantages
    over = (advantages < 0) & (loss > bound)
    return PolicyLoss(
        loss=jnp.where(over, bound, loss),
        ratio=ratio,
        clipped=(held > free) | over,
        approxkl=approxkl,
    )


def ppo_value_loss(
    *,
    values: Float[Array, "*S"],
    old_values: Float[Array, "*S"],
    returns: Float[Array, "*S"],
    mask: Bool[Array, "*S"],
    value_clip_range: Float[ArrayLike, ""],
) -> ValueLoss:
    """Fit values to returns, in steps of at most `value_clip_range`.

    loss = max((V - G)^2, (V_old + clip(V - V_old, -c, c) - G)^2) / 2

    An infinite range clips nothing. This follows the code of Ziegler et al. (2019),
    arXiv 1909.08593, and the code of Schulman et al. (2017), whose paper has no value
    clip.
    """
    values = masked.keep(values, mask)
    old_values = lax.stop_gradient(masked.keep(old_values, mask))
    returns = lax.stop_gradient(masked.keep(returns, mask))
    step = jnp.clip(values - old_values, -value_clip_range, value_clip_range)
    free = (values - returns) ** 2
    held = (old_values + step - returns) ** 2
    return ValueLoss(loss=0.5 * jnp.maximum(free, held), clipped=held > free)


def explained_variance(
    *,
    values: Float[Array, "*S"],
    returns: Float[Array, "*S"],
    mask: Bool[Array, "*S"],
) -> Float[Array, ""]:
    """Measure how much of the returns the values explain: 1 - var(G - V) / var(G).

    1 is perfect, 0 is no better than a constant, and a negative value is worse. The
    result is 0 if all returns are equal or all are masked.
    """
    returns = masked.keep(returns, mask)
    total = masked.var(returns, mask)
    residual = masked.var(returns - masked.keep(values, mask), mask)
    return jnp.where(total > 0, 1.0 - residual / jnp.where(total > 0, total, 1.0), 0.0)


def _log_ratio(logprobs, old_logprobs, mask):
    difference = masked.keep(logprobs, mask) - masked.keep(old_logprobs, mask)
    # exp(20) is beyond every clip range; without the bound a ratio of inf would make
    # 0 * inf = nan in the gradient of a clipped token.
    return jnp.clip(difference, -20.0, 20.0)


def _response_log_ratio(log_ratio, mask):
    """Return at each token the mean over the tokens of its response, whose gradient is
    that of the token alone (GSPO-token, arXiv 2507.18071, section 4.3)."""
    count = jnp.maximum(mask.sum(-1, keepdims=True), 1)
    mean = lax.stop_gradient(log_ratio.sum(-1, keepdims=True) / count)
    return masked.keep(mean + log_ratio - lax.stop_gradient(log_ratio), mask)
