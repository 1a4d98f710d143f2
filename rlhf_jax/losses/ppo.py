"""Policy and value losses of PPO, elementwise over tokens.

Losses are 0 where masked (and the ratio is 1): divide the sum of a loss by the number
of real tokens, as `masked.mean` does, never by the size of the array. Old
log-probabilities, old values, advantages and returns are targets: no gradient flows to
the targets.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float

from rlhf_jax.losses import masked


class PolicyLoss(NamedTuple):
    loss: Float[Array, "*S"]
    ratio: Float[Array, "*S"]  # pi / pi_old
    clipped: Bool[Array, "*S"]  # True where the clip stops the gradient
    approxkl: Float[Array, "*S"]  # log(ratio)^2 / 2, as TRL's policy/approxkl


class ValueLoss(NamedTuple):
    loss: Float[Array, "*S"]
    clipped: Bool[Array, "*S"]  # True where the clip stops the gradient


def ppo_policy_loss(
    *,
    logprobs: Float[Array, "*S"],
    old_logprobs: Float[Array, "*S"],
    advantages: Float[Array, "*S"],
    mask: Bool[Array, "*S"],
    clip_range: Float[ArrayLike, ""],
) -> PolicyLoss:
    """Raise the probability of tokens with a positive advantage, within a trust region
    around the old policy.

    loss = max(-A ratio, -A clip(ratio, 1 - clip_range, 1 + clip_range))

    Schulman et al. (2017), arXiv 1707.06347, equation 7.
    """
    log_ratio = _log_ratio(logprobs, old_logprobs, mask)
    ratio = jnp.exp(log_ratio)
    advantages = lax.stop_gradient(masked.keep(advantages, mask))
    free = -advantages * ratio
    held = -advantages * jnp.clip(ratio, 1.0 - clip_range, 1.0 + clip_range)
    return PolicyLoss(
        loss=jnp.maximum(free, held),
        ratio=ratio,
        clipped=held > free,
        approxkl=0.5 * log_ratio**2,
    )


def dual_clip_policy_loss(
    *,
    logprobs: Float[Array, "*S"],
    old_logprobs: Float[Array, "*S"],
    advantages: Float[Array, "*S"],
    mask: Bool[Array, "*S"],
    clip_range: Float[ArrayLike, ""],
    dual_clip: Float[ArrayLike, ""],
) -> PolicyLoss:
    """Bound the PPO loss also where the advantage is negative and the ratio is large.

    loss = min(ppo, -dual_clip A) where A < 0, ppo elsewhere; dual_clip > 1.

    Ye et al. (2020), arXiv 1912.09729.
    """
    ppo = ppo_policy_loss(
        logprobs=logprobs,
        old_logprobs=old_logprobs,
        advantages=advantages,
        mask=mask,
        clip_range=clip_range,
    )
    advantages = lax.stop_gradient(masked.keep(advantages, mask))
    bound = -dual_clip * advantages
    over = (advantages < 0) & (ppo.loss > bound)
    return ppo._replace(
        loss=jnp.where(over, bound, ppo.loss), clipped=ppo.clipped | over
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
    old_logprobs = lax.stop_gradient(masked.keep(old_logprobs, mask))
    # exp(20) is beyond every clip range; without the bound a ratio of inf would make
    # 0 * inf = nan in the gradient of a clipped token.
    return jnp.clip(masked.keep(logprobs, mask) - old_logprobs, -20.0, 20.0)
