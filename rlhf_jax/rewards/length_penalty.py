"""The soft penalty of long responses of DAPO (arXiv 2503.14476, equation 13)."""

from rlhf_jax.data.records import Prompt, Response
from rlhf_jax.rewards.rows import Function, by_row


def length_penalty(limit: int, buffer: int) -> Function:
    """Return the reward of a response of n tokens, its end token included:

    0                              n <= limit - buffer
    (limit - buffer - n) / buffer  limit - buffer < n <= limit
    -1                             n > limit, or the response was cut
    """

    def row(prompt: Prompt, response: Response) -> float:
        count = len(response.tokens or [])
        if count > limit or not response.ended:
            return -1.0
        return min((limit - buffer - count) / buffer, 0.0)

    return by_row(row)
