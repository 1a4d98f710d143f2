"""The gap between sampler and trainer: weights that correct it, and its size.

The program that samples (another kernel, another order of sums, weights in int8) gives
a token another probability than the program that trains, so that the samples are not
the trained policy's own. With

    gap = log(pi_trainer / pi_sampler)

of each sampled token, exp(gap) is the importance weight that removes the difference.
Both probabilities are those of one policy before its update: the ratio of PPO, of the
updated policy to pi_trainer, is another factor.

Letters: B batch, R response.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float

from rlhf_jax.losses import masked

LEVELS = ("token", "response")


def sampler_weights(
    *,
    logprobs: Float[Array, "B R"],
    sampler_logprobs: Float[Array, "B R"],
    mask: Bool[Array, "B R"],
    level: str,
    cap: Float[ArrayLike, ""],
) -> Float[Array, "B R"]:
    """Compute the truncated importance weight of each token's loss.

    "token": min(exp(gap of the token), cap): biased, of small variance.
    "response": min(exp(sum of the gaps of the response), cap) at each of its tokens:
        without bias but for the cap, of a variance that grows with the length.

    Zeros where masked. Yao et al. (2025), "Your Efficient RL Framework Secretly Brings
    You Off-Policy RL Training" (https://fengyao.notion.site/off-policy-rl), with the
    truncation of Ionides (2008).

    Raises:
        ValueError: `level` names no weight.
    """
    gap = masked.keep(logprobs, mask) - masked.keep(sampler_logprobs, mask)
    if level == "response":
        gap = jnp.broadcast_to(gap.sum(-1, keepdims=True), mask.shape)
    elif level != "token":
        raise ValueError(f"{level=} must be one of {', '.join(LEVELS)}.")
    weights = jnp.minimum(jnp.exp(gap), cap)
    return lax.stop_gradient(masked.keep(weights, mask))


def sampler_error(
    *,
    logprobs: Float[Array, "B R"],
    sampler_logprobs: Float[Array, "B R"],
    mask: Bool[Array, "B R"],
) -> Float[Array, " B"]:
    """Measure the error of each response: the mean |gap| of its tokens, in nats.

    0 for a response without a real token. A response whose error is too large can be
    left out of an update: Liu et al. (2025), "When Speed Kills Stability",
    https://richardli.xyz/rl-collapse.
    """
    gap = masked.keep(logprobs, mask) - masked.keep(sampler_logprobs, mask)
    return lax.stop_gradient(jax.vmap(masked.mean)(jnp.abs(gap), mask))
