"""Advantages: GAE of one sequence, baselines from scores, running normalisation.

All results are targets, so no gradient flows through the values returned here.

Letters: B batch, K responses to one prompt, R response.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Shaped

from rlhf_jax.losses import masked

EQUAL = 1e-6  # relative; eight times the rounding error of float32


class Advantages(NamedTuple):
    advantages: Float[Array, " R"]
    returns: Float[Array, " R"]  # advantages + values: the value model's targets


def gae(
    *,
    rewards: Float[Array, " R"],
    values: Float[Array, " R"],
    mask: Bool[Array, " R"],
    gamma: Float[ArrayLike, ""],
    lam: Float[ArrayLike, ""],
) -> Advantages:
    """Estimate the advantages of one sequence; `jax.vmap` for a batch.

    delta_r = reward_r + gamma V_{r+1} - V_r
    A_r = delta_r + gamma lam A_{r+1}

    Masked tokens are skipped, also in the middle of a sequence: r + 1 is the next real
    token, and V after the last real token is 0. Zeros where masked.
    Schulman et al. (2015), arXiv 1506.02438, equation 16.
    """
    rewards, values = masked.keep(rewards, mask), masked.keep(values, mask)

    def step(after, token):
        reward, value, real = token
        next_advantage, next_value = after
        delta = reward + gamma * next_value - value
        advantage = delta + gamma * lam * next_advantage
        before = (
            jnp.where(real, advantage, next_advantage),
            jnp.where(real, value, next_value),
        )
        return before, advantage

    end = (jnp.zeros(()), jnp.zeros(()))
    _, advantages = lax.scan(step, end, (rewards, values, mask), reverse=True)
    advantages = masked.keep(advantages, mask)
    return lax.stop_gradient(Advantages(advantages, advantages + values))


def reference_baseline(
    *, scores: Float[Array, "*B"], reference_scores: Float[Array, "*B"]
) -> Float[Array, "*B"]:
    """Subtract the score of another response to the same prompt.

    r(x, y) - r(x, y_ref)

    ChatGLM-RLHF, arXiv 2404.00934, section 3: the difference removes the part of the
    score that depends on the prompt alone. y_ref is the reference model's response,
    generated once for each prompt. With the current policy's greedy response as y_ref
    the difference is the advantage of ReMax: Li et al. (2023), arXiv 2310.10505.
    """
    scores = scores.astype(jnp.float32) - reference_scores.astype(jnp.float32)
    return lax.stop_gradient(scores)


def rloo_advantages(*, scores: Float[Array, "B K"]) -> Float[Array, "B K"]:
    """Subtract the mean score of the other responses to the same prompt.

    A_k = r_k - 1 / (K - 1) sum_{j != k} r_j = K / (K - 1) (r_k - mean(r))

    Ahmadian et al. (2024), arXiv 2402.14740.
    """
    num_responses = scores.shape[1]
    if num_responses < 2:
        raise ValueError(f"{num_responses=}: RLOO needs two or more for each prompt.")
    advantages = _centre(scores) * (num_responses / (num_responses - 1))
    return lax.stop_gradient(advantages)


def grpo_advantages(
    *,
    scores: Float[Array, "B K"],
    divide_by_std: bool,
    epsilon: Float[ArrayLike, ""],
) -> Float[Array, "B K"]:
    """Compare the scores of the responses to one prompt.

    A_k = (r_k - mean(r)) / (std(r) + epsilon); without `divide_by_std` r_k - mean(r)

    Shao et al. (2024), arXiv 2402.03300, section 4.1.2. The paper does not define std;
    the biased std is used here, so K = 1 gives 0 (implementations with Bessel's
    correction give sqrt((K - 1) / K) times these advantages). The division gives a
    prompt whose scores are nearly equal as much weight as any other; Dr. GRPO (Liu et
    al., 2025, arXiv 2503.20783, section 3.2) leaves it out.
    """
    centred = _centre(scores)
    if divide_by_std:
        std = jnp.sqrt(jnp.mean(centred**2, axis=1, keepdims=True))
        # Equal scores give 0, also with an epsilon of 0.
        centred = centred / jnp.where(std + epsilon > 0, std + epsilon, 1.0)
    return lax.stop_gradient(centred)


def groups_differ(scores: Float[Array, "B K"]) -> Bool[Array, " B"]:
    """Return True for each prompt whose responses do not all have the same score.

    The advantages of a group of equal scores are all 0, so there is nothing to learn
    from the group: DAPO, arXiv 2503.14476, section 3.2. Scores count as equal if they
    differ by at most EQUAL times the largest.
    """
    scores = scores.astype(jnp.float32)
    spread = scores.max(1) - scores.min(1)
    # NaN is not equal to anything: its update is then refused, and counted.
    return ~(spread <= EQUAL * jnp.abs(scores).max(1))


def reinforce_pp_advantages(
    *,
    rewards: Float[Array, "B R"],
    mask: Bool[Array, "B R"],
    gamma: Float[ArrayLike, ""],
) -> Float[Array, "B R"]:
    """Normalise the returns of all tokens of a batch to mean 0 and variance 1.

    A_r = (G_r - mean(G)) / std(G), G_r = reward_r + gamma G_{r+1}

    The rewards hold the KL penalty of each token (`kl.penalised_rewards`), so a token
    is charged for the divergence from itself on. Zeros where masked. REINFORCE++, Hu
    et al. (2025), arXiv 2501.03262.
    """

    def returns(rewards, mask):
        return gae(
            rewards=rewards,
            values=jnp.zeros_like(rewards),
            mask=mask,
            gamma=gamma,
            lam=1.0,
        ).advantages

    batch = masked.whiten(jax.vmap(returns)(rewards, mask), mask, shift_mean=True)
    return lax.stop_gradient(batch)


class RunningMoments(NamedTuple):
    """The count, mean and sum of squared deviations of all numbers so far."""

    count: Float[Array, ""]
    mean: Float[Array, ""]
    m2: Float[Array, ""]


def init_moments() -> RunningMoments:
    """Return the moments of no numbers: all zero."""
    return RunningMoments(*(jnp.zeros((), jnp.float32) for _ in range(3)))


def update_moments(
    moments: RunningMoments, x: Shaped[Array, "*S"], mask: Bool[Array, "*S"]
) -> RunningMoments:
    """Add the kept elements of x to the moments.

    mean = mean_a + d n_b / n,  m2 = m2_a + m2_b + d^2 n_a n_b / n,  d = mean_b - mean_a

    Chan, Golub and LeVeque (1979). The result does not depend on how the data are split
    into parts.
    """
    added = jnp.sum(mask).astype(jnp.float32)
    count = moments.count + added
    share = added / jnp.maximum(count, 1)
    delta = masked.mean(x, mask) - moments.mean
    updated = RunningMoments(
        count=count,
        mean=moments.mean + delta * share,
        m2=moments.m2 + masked.var(x, mask) * added + delta**2 * moments.count * share,
    )
    return lax.stop_gradient(updated)


def normalise(x: Float[Array, "*S"], moments: RunningMoments) -> Float[Array, "*S"]:
    """Shift x by the running mean and scale x by the running standard deviation.

    (x - mean) / std; while all numbers seen are equal, std is taken as 1. Numbers count
    as equal if their std is at most EQUAL times their mean, because the rounding of a
    running mean leaves a std of that size.
    """
    std = jnp.sqrt(moments.m2 / jnp.maximum(moments.count, 1))
    std = jnp.where(std > EQUAL * jnp.abs(moments.mean), std, 1.0)
    return lax.stop_gradient((x.astype(jnp.float32) - moments.mean) / std)


def _centre(scores):
    # Subtract the mean twice, so that equal scores give exactly 0 (losses/masked.py).
    scores = scores.astype(jnp.float32)
    scores = scores - jnp.mean(scores, axis=1, keepdims=True)
    return scores - jnp.mean(scores, axis=1, keepdims=True)
