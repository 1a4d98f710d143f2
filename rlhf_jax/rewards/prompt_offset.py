"""A number that depends on the prompt alone, for experiments on baselines.

Added to the scores of all responses to a prompt, it changes no difference between
them: the pairwise loss of a reward model cannot see it, and a perfect baseline takes it
away. Its weight is its standard deviation between prompts.
"""

import hashlib

from scipy.special import ndtri

from rlhf_jax.data.records import Prompt, Response
from rlhf_jax.rewards.rows import Function, by_row


def prompt_offset() -> Function:
    """Return the reward: a standard normal number drawn from the prompt's messages."""

    def row(prompt: Prompt, response: Response) -> float:
        said = "\0".join(message["content"] for message in prompt.messages)
        digest = hashlib.sha256(said.encode()).digest()
        # The middles of 2**32 equal parts of (0, 1).
        return float(ndtri((int.from_bytes(digest[:4], "big") + 0.5) / 2**32))

    return by_row(row)
