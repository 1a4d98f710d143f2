"""A penalty for repeated sequences of tokens."""

from rlhf_jax.data.records import Prompt, Response
from rlhf_jax.rewards.rows import Function, by_row


def repetition_penalty(size: int) -> Function:
    """Return the reward: minus the share of a response's sequences of `size` tokens
    that occurred before in it, from -1 to 0; 0 for a response of at most `size`
    tokens."""

    def row(prompt: Prompt, response: Response) -> float:
        tokens = response.tokens or []
        count = len(tokens) - size + 1
        if count < 2:
            return 0.0
        distinct = {tuple(tokens[i : i + size]) for i in range(count)}
        return len(distinct) / count - 1.0

    return by_row(row)
