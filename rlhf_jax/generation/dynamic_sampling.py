"""Dynamic sampling: a batch of prompts that there is something to learn from.

DAPO (arXiv 2503.14476, section 3.2) draws prompts until the batch is full of prompts
whose responses differ in their score. A run draws a bounded number of times, so that
the prompts of a step follow from the number of the step alone.
"""

from typing import TypeVar

import jax
import numpy as np
from jaxtyping import ArrayLike

Rows = TypeVar("Rows")


def fill(
    batch: Rows, wanted: np.ndarray, other: Rows, other_wanted: np.ndarray
) -> tuple[Rows, np.ndarray]:
    """Replace unwanted prompts of a batch by wanted prompts of another, in order, as
    far as these reach.

    Args:
        batch, other: trees of arrays on the host, with the same number of rows for each
            prompt: [prompts * K, ...], the K rows of a prompt adjacent.
        wanted, other_wanted: bool [prompts].

    Returns:
        The filled batch, and which of its prompts are wanted.
    """
    places = np.flatnonzero(~wanted)
    taken = np.flatnonzero(other_wanted)[: len(places)]
    places = places[: len(taken)]

    def put(x: ArrayLike, y: ArrayLike) -> np.ndarray:
        x, y = np.array(x), np.asarray(y)
        by_prompt = x.reshape(len(wanted), -1, *x.shape[1:])  # a view of x
        by_prompt[places] = y.reshape(by_prompt.shape)[taken]
        return x

    is_filled = wanted.copy()
    is_filled[places] = True
    return jax.tree.map(put, batch, other), is_filled
