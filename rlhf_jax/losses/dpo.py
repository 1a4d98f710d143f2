"""DPO and its relatives, on log-probabilities summed over the response.

With z = log(pi / pi_ref)(chosen) - log(pi / pi_ref)(rejected), all losses but
SimPO are functions of z. Each loss returns one value per pair; the caller averages. The
ChatGLM-RLHF paper (arXiv 2404.00934, section 4) uses `dpo_loss` with label_smoothing 0.

Letters: B pairs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int


class PairLogprobs(NamedTuple):
    """Log-probabilities summed over a response, of the policy and of the reference."""

    chosen: Float[Array, "*B"]
    rejected: Float[Array, "*B"]
    ref_chosen: Float[Array, "*B"]
    ref_rejected: Float[Array, "*B"]


class PreferenceLoss(NamedTuple):
    loss: Float[Array, "*B"]
    chosen_rewards: Float[Array, "*B"]  # implicit: beta log(pi / pi_ref)
    rejected_rewards: Float[Array, "*B"]
    margin: Float[Array, "*B"]  # chosen_rewards - rejected_rewards
    accuracy: Float[Array, "*B"]  # 1 where the margin is positive


def dpo_loss(
    pair: PairLogprobs,
    *,
    beta: Float[ArrayLike, ""],
    label_smoothing: Float[ArrayLike, ""],
) -> PreferenceLoss:
    """Make the implicit reward of the chosen response larger.

    loss = -(1 - e) log sigmoid(beta z) - e log sigmoid(-beta z)

    Rafailov et al. (2023), arXiv 2305.18290, equation 7. With label smoothing e > 0
    this is conservative DPO (Mitchell, 2023, https://ericmitchell.ai/cdpo.pdf,
    equation 3), which assumes that a fraction e of the labels is wrong.
    """
    rewards = implicit_rewards(pair, beta)
    right, wrong = _log_sigmoids(rewards[0] - rewards[1])
    return preference(
        -(1.0 - label_smoothing) * right - label_smoothing * wrong, rewards
    )


def robust_dpo_loss(
    pair: PairLogprobs,
    *,
    beta: Float[ArrayLike, ""],
    label_smoothing: float,
) -> PreferenceLoss:
    """Correct DPO for a fraction e of flipped labels, without bias.

    loss = (-(1 - e) log sigmoid(beta z) + e log sigmoid(-beta z)) / (1 - 2 e)

    The mean of this loss over labels flipped with probability e is the DPO loss of the
    clean labels.
    Chowdhury et al. (2024), arXiv 2403.00409.
    """
    if not 0.0 <= label_smoothing < 0.5:
        raise ValueError(f"{label_smoothing=} must be at least 0 and below 0.5.")
    rewards = implicit_rewards(pair, beta)
    right, wrong = _log_sigmoids(rewards[0] - rewards[1])
    loss = -(1.0 - label_smoothing) * right + label_smoothing * wrong
    return preference(loss / (1.0 - 2.0 * label_smoothing), rewards)


def ipo_loss(
    pair: PairLogprobs,
    *,
    beta: Float[ArrayLike, ""],
) -> PreferenceLoss:
    """Pull the log-ratio to a fixed margin instead of to infinity.

    loss = (z - 1 / (2 beta))^2

    Azar et al. (2023), arXiv 2310.12036, equation 17 (tau is beta here). The loss uses
    summed log-probabilities, as the paper does; TRL divides them by the length first.
    """
    rewards = implicit_rewards(pair, beta)
    log_ratio = (rewards[0] - rewards[1]) / beta
    return preference((log_ratio - 1.0 / (2.0 * beta)) ** 2, rewards)


def length_regularised_dpo_loss(
    pair: PairLogprobs,
    *,
    chosen_lengths: Int[Array, "*B"],
    rejected_lengths: Int[Array, "*B"],
    beta: Float[ArrayLike, ""],
    alpha: Float[ArrayLike, ""],
) -> PreferenceLoss:
    """Learn less from a pair whose chosen response is the longer of the two (R-DPO).

    loss = -log sigmoid(beta z + alpha (|chosen| - |rejected|))

    This is DPO for the reward r(x, y) - alpha |y|: the length explains a part of the
    preference, and the policy explains only the rest. The returned rewards are those of
    DPO, without the length term. Park et al. (2024), arXiv 2403.19159.
    """
    rewards = implicit_rewards(pair, beta)
    longer = (chosen_lengths - rejected_lengths).astype(jnp.float32)
    right, _ = _log_sigmoids(rewards[0] - rewards[1] + alpha * longer)
    return preference(-right, rewards)


def simpo_loss(
    *,
    chosen_logprobs: Float[Array, "*B"],
    rejected_logprobs: Float[Array, "*B"],
    chosen_lengths: Int[Array, "*B"],
    rejected_lengths: Int[Array, "*B"],
    beta: Float[ArrayLike, ""],
    gamma: Float[ArrayLike, ""],
) -> PreferenceLoss:
    """Compare log-probabilities per token, without a reference.

    loss = -log sigmoid(beta log pi(chosen) / |chosen|
                        - beta log pi(rejected) / |rejected| - gamma)

    An empty response counts as one token. Meng et al. (2024), arXiv 2405.14734,
    equation 6.
    """
    rewards = (
        beta * chosen_logprobs.astype(jnp.float32) / jnp.maximum(chosen_lengths, 1),
        beta * rejected_logprobs.astype(jnp.float32) / jnp.maximum(rejected_lengths, 1),
    )
    right, _ = _log_sigmoids(rewards[0] - rewards[1] - gamma)
    return preference(-right, rewards)


def implicit_rewards(
    pair: PairLogprobs, beta: Float[ArrayLike, ""]
) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
    """Return beta log(pi / pi_ref) of the chosen and of the rejected response, in
    float32; no gradient flows to the reference."""
    chosen, rejected, *reference = (x.astype(jnp.float32) for x in pair)
    ref_chosen, ref_rejected = lax.stop_gradient(reference)
    return beta * (chosen - ref_chosen), beta * (rejected - ref_rejected)


def preference(
    loss: Float[Array, "*B"], rewards: tuple[Float[Array, "*B"], Float[Array, "*B"]]
) -> PreferenceLoss:
    """Put the loss of each pair and the rewards (chosen, rejected) together."""
    chosen_rewards, rejected_rewards = rewards
    margin = chosen_rewards - rejected_rewards
    return PreferenceLoss(
        loss=loss,
        chosen_rewards=chosen_rewards,
        rejected_rewards=rejected_rewards,
        margin=margin,
        accuracy=(margin > 0).astype(jnp.float32),
    )


def _log_sigmoids(logits):
    return jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
