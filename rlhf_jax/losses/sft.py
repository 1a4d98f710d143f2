"""The SFT loss, which is also the term against forgetting in PPO and DPO."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def sft_loss(*, logprobs: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """Compute the next-token loss of each token: -log p(token).

    PPO and DPO add beta_sft times the mean of this loss over response tokens
    (ChatGLM-RLHF, arXiv 2404.00934, section 3).
    """
    return -logprobs.astype(jnp.float32)
