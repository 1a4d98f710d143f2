"""One number from the losses of tokens: the mean over tokens, responses or a constant.

The total and the count are returned apart, because the totals of microbatches add up
only if all are divided by the count of the whole minibatch.

Letters: B batch, R response.
"""

from typing import NamedTuple

import jax
from jaxtyping import Array, ArrayLike, Bool, Float, Real, Shaped

from rlhf_jax.losses import masked

AGGREGATIONS = ("token", "response", "constant")


class Aggregate(NamedTuple):
    """The mean is total / count; both add up over the parts of a batch."""

    total: Float[Array, ""]
    count: Real[Array, ""]


def aggregate(
    x: Shaped[Array, "B R"],
    mask: Bool[Array, "B R"],
    *,
    aggregation: str,
    length: Real[ArrayLike, ""],
) -> Aggregate:
    """Sum the numbers of real tokens, and count the terms of their mean.

    A response without a real token counts nowhere.

    "token": the mean over all tokens, so a long response weighs more than a short one:
        DAPO, arXiv 2503.14476, section 3.3.
    "response": the mean over the tokens of each response, then over the responses:
        GRPO, arXiv 2402.03300, equation 3.
    "constant": the sum over all tokens, divided by `length` times the number of
        responses: a token weighs the same whatever the lengths of a batch. Dr. GRPO,
        arXiv 2503.20783, section 3.2, where `length` is the limit of a response, in
        tokens.

    Raises:
        ValueError: `aggregation` names no mean.
    """
    rows = mask.any(-1)
    if aggregation == "token":
        return Aggregate(masked.sum(x, mask), mask.sum())
    if aggregation == "response":
        return Aggregate(masked.sum(jax.vmap(masked.mean)(x, mask), rows), rows.sum())
    if aggregation == "constant":
        return Aggregate(masked.sum(x, mask), rows.sum() * length)
    raise ValueError(f"{aggregation=} must be one of {', '.join(AGGREGATIONS)}.")
