"""ORPO: the likelihood of the chosen response and an odds ratio, without a reference.

Letters: B pairs.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from rlhf_jax.losses.dpo import PreferenceLoss, preference

CERTAIN = -1e-6  # nats per token; the odds of a response beyond it are taken there


def orpo_loss(
    *,
    chosen_logprobs: Float[Array, "*B"],
    rejected_logprobs: Float[Array, "*B"],
    chosen_lengths: Int[Array, "*B"],
    rejected_lengths: Int[Array, "*B"],
    beta: Float[ArrayLike, ""],
) -> PreferenceLoss:
    """Learn the chosen response, and raise its odds above those of the rejected one.

    With l = log pi(y) / |y|, the mean per token, and odds(y) = e^l / (1 - e^l):

    loss = -l(chosen) - beta log sigmoid(log odds(chosen) - log odds(rejected))

    The summed log-probabilities come in; an empty response counts as one token. The
    returned rewards are beta l. Hong et al. (2024), arXiv 2403.07691, equations 6 and 7
    (lambda is beta here). The first term is the SFT loss of the chosen response, so
    ORPO needs no SFT stage before it.
    """
    chosen = chosen_logprobs.astype(jnp.float32) / jnp.maximum(chosen_lengths, 1)
    rejected = rejected_logprobs.astype(jnp.float32) / jnp.maximum(rejected_lengths, 1)
    log_odds_ratio = _log_odds(chosen) - _log_odds(rejected)
    loss = -chosen - beta * jax.nn.log_sigmoid(log_odds_ratio)
    return preference(loss, (beta * chosen, beta * rejected))


def _log_odds(logprobs: Float[Array, "*B"]) -> Float[Array, "*B"]:
    logprobs = jnp.minimum(logprobs, CERTAIN)
    # 1 - e^l without loss of digits where l is near 0.
    return logprobs - jnp.log(-jnp.expm1(logprobs))
