"""KTO: single responses that are desirable or not, instead of pairs.

Letters: B pairs.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float

from rlhf_jax.losses import masked
from rlhf_jax.losses.dpo import (
    PairLogprobs,
    PreferenceLoss,
    implicit_rewards,
    preference,
)


def kto_loss(
    pair: PairLogprobs,
    *,
    kl: Float[ArrayLike, ""],
    beta: Float[ArrayLike, ""],
    desirable_weight: Float[ArrayLike, ""],
    undesirable_weight: Float[ArrayLike, ""],
) -> PreferenceLoss:
    """Make desirable responses likelier and undesirable ones less likely, each alone.

    With r = log(pi / pi_ref)(y) and z0 = `kl`:

    desirable:   desirable_weight (1 - sigmoid(beta (r - z0)))
    undesirable: undesirable_weight (1 - sigmoid(beta (z0 - r)))

    Pairs are split: the chosen response is a desirable example and the rejected one an
    undesirable example, and neither sees the other. The loss of a pair is the mean of
    its two examples, so the mean over pairs is the mean over examples.

    Ethayarajh et al. (2024), arXiv 2402.01306, section 4.1; pairs are split as in the
    experiments of that paper.
    """
    rewards = implicit_rewards(pair, beta)
    reference_point = beta * lax.stop_gradient(kl)
    desirable = desirable_weight * jax.nn.sigmoid(reference_point - rewards[0])
    undesirable = undesirable_weight * jax.nn.sigmoid(rewards[1] - reference_point)
    return preference(0.5 * (desirable + undesirable), rewards)


def kto_kl(
    *,
    logprobs: Float[Array, "*S"],
    ref_logprobs: Float[Array, "*S"],
    mask: Bool[Array, "*S"],
) -> Float[Array, ""]:
    """Estimate the reference point z0: KL(policy || reference), never negative.

    z0 = max(0, mean log(pi / pi_ref)(y' | x)), where y' is the response to another
    prompt of the batch than x. No gradient flows through z0. Ethayarajh et al. (2024),
    arXiv 2402.01306, section 4.1.
    """
    gap = masked.keep(logprobs, mask) - masked.keep(ref_logprobs, mask)
    return lax.stop_gradient(jnp.maximum(masked.mean(gap, mask), 0.0))
