"""The type of a reward function, and functions that are computed row by row."""

from collections.abc import Callable, Sequence

import numpy as np

from rlhf_jax.data.records import Prompt, Response

# A reward: one finite number for each response, float32 [B]. A number depends on its
# own row alone: rows are shared out between the processes of a run.
Function = Callable[[Sequence[Prompt], Sequence[Response]], np.ndarray]
Row = Callable[[Prompt, Response], float]


def by_row(row: Row) -> Function:
    """Return the reward function, float32 [B], of a function of one row."""

    def function(
        prompts: Sequence[Prompt], responses: Sequence[Response]
    ) -> np.ndarray:
        pairs = zip(prompts, responses, strict=True)
        return np.array(
            [row(prompt, response) for prompt, response in pairs], np.float32
        )

    return function


def reference_of(prompt: Prompt, reward: str) -> str:
    """Return the reference of a prompt.

    Raises:
        ValueError: the prompt has none; names the reward that needs it.
    """
    if not prompt.reference.strip():
        raise ValueError(
            f"prompt {prompt.id!r} has no reference, which {reward} compares with: "
            'give its line the field "reference"'
        )
    return prompt.reference
