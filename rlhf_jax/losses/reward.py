"""Ranking losses of the reward model.

Letters: B pairs or prompts, K responses to one prompt.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from rlhf_jax.losses import masked


class RankingLoss(NamedTuple):
    loss: Float[Array, "*B"]  # ranking + score_regularisation * regulariser
    ranking: Float[Array, "*B"]
    regulariser: Float[Array, "*B"]  # unweighted
    margin: Float[Array, "*B"]  # chosen score - rejected score; right if positive


class KWayRankingLoss(NamedTuple):
    """Means over the pairs of one prompt; all 0 where `num_pairs` is 0."""

    loss: Float[Array, " B"]
    ranking: Float[Array, " B"]
    regulariser: Float[Array, " B"]
    margin: Float[Array, " B"]
    accuracy: Float[Array, " B"]  # share of pairs in the right order
    num_pairs: Int[Array, " B"]  # average over prompts with num_pairs > 0


def ranking_loss(
    *,
    chosen_scores: Float[Array, "*B"],
    rejected_scores: Float[Array, "*B"],
    margin: Float[ArrayLike, ""] | Float[Array, "*B"],
    label_smoothing: Float[ArrayLike, ""],
    score_regularisation: Float[ArrayLike, ""],
) -> RankingLoss:
    """Rank the chosen response above the rejected one; hold scores near 0.

    d = r_chosen - r_rejected - margin
    loss = -(1 - e) log sigmoid(d) - e log sigmoid(-d)
           + score_regularisation (r_chosen^2 + r_rejected^2)

    ChatGLM-RLHF, arXiv 2404.00934, section 2, which has no margin (Llama 2, arXiv
    2307.09288, equation 2) and no label smoothing e: 0 for both is the paper.
    """
    chosen = chosen_scores.astype(jnp.float32)
    rejected = rejected_scores.astype(jnp.float32)
    logits = chosen - rejected - margin
    ranking = -(1.0 - label_smoothing) * jax.nn.log_sigmoid(
        logits
    ) - label_smoothing * jax.nn.log_sigmoid(-logits)
    regulariser = chosen**2 + rejected**2
    return RankingLoss(
        loss=ranking + score_regularisation * regulariser,
        ranking=ranking,
        regulariser=regulariser,
        margin=chosen - rejected,
    )


def kway_ranking_loss(
    *,
    scores: Float[Array, "B K"],
    ranks: Int[Array, "B K"],
    mask: Bool[Array, "B K"],
    margin: Float[ArrayLike, ""],
    label_smoothing: Float[ArrayLike, ""],
    score_regularisation: Float[ArrayLike, ""],
) -> KWayRankingLoss:
    """Average `ranking_loss` over all pairs of a ranking, so a prompt counts once.

    loss = mean over (i, j) with rank_i < rank_j of ranking_loss(r_i, r_j)

    Rank 1 is best; equal ranks make no pair. InstructGPT, arXiv 2203.02155,
    equation 1. The ChatGLM-RLHF paper has pairs only, which is K = 2.
    """
    scores = masked.keep(scores, mask)
    real = mask[:, :, None] & mask[:, None, :]
    pairs = real & (ranks[:, :, None] < ranks[:, None, :])  # [B, K, K]
    out = ranking_loss(
        chosen_scores=jnp.broadcast_to(scores[:, :, None], pairs.shape),
        rejected_scores=jnp.broadcast_to(scores[:, None, :], pairs.shape),
        margin=margin,
        label_smoothing=label_smoothing,
        score_regularisation=score_regularisation,
    )
    mean = jax.vmap(masked.mean)
    return KWayRankingLoss(
        *(mean(x, pairs) for x in out),
        accuracy=mean(out.margin > 0, pairs),
        num_pairs=jnp.sum(pairs, axis=(1, 2)),
    )
