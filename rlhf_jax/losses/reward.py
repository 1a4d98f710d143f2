"""The ranking loss of the reward model.

Letters: B pairs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float


class RankingLoss(NamedTuple):
    loss: Float[Array, "*B"]  # ranking + score_regularisation * regulariser
    ranking: Float[Array, "*B"]
    regulariser: Float[Array, "*B"]  # unweighted
    margin: Float[Array, "*B"]  # chosen score - rejected score; > 0 if ranked right


def ranking_loss(
    *,
    chosen_scores: Float[Array, "*B"],
    rejected_scores: Float[Array, "*B"],
    margin: Float[ArrayLike, ""] | Float[Array, "*B"],
    label_smoothing: Float[ArrayLike, ""],
    score_regularisation: Float[ArrayLike, ""],
) -> RankingLoss:
    """Rank the chosen response above the rejected one, and keep scores near 0.

    d = r_chosen - r_rejected - margin
    loss = -(1 - e) log sigmoid(d) - e log sigmoid(-d)
           + score_regularisation (r_chosen^2 + r_rejected^2)

    ChatGLM-RLHF, arXiv 2404.00934, section 2. The margin is from Llama 2, arXiv
    2307.09288, equation 2; margin 0 and label smoothing e = 0 give the paper's loss.
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
