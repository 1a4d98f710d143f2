"""Policies compared at the same KL divergence to the model that they started from.

A policy that went further from its start usually scores higher and has forgotten more,
so numbers of two policies at the same step mix what an algorithm does with how far it
went. Here a family of policies, one algorithm at several strengths, is a line through
its start, at a KL of 0, and its policies.

Gains are about linear in the square root of the KL (Gao et al., arXiv 2210.10760), in
nats a response.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

GRID = 101  # points of a mean over a range


def at_kl(kl: float, kls: Sequence[float], values: Sequence[float]) -> float:
    """Return the value of a family at a KL: linear in the root of the KL between its
    policies, and that of the nearest policy beyond them.

    Args:
        kls, values: numbers [N] of its policies, the start included.
    """
    order, roots = np.argsort(kls), _root(kls)
    return float(np.interp(_root(kl), roots[order], np.asarray(values)[order]))


def mean_to_kl(kl: float, kls: Sequence[float], values: Sequence[float]) -> float:
    """Return the mean of `at_kl` over the roots from 0 to that of `kl`: the height of a
    frontier."""
    grid = np.linspace(0.0, _root(kl), GRID)
    return float(np.mean([at_kl(root**2, kls, values) for root in grid]))


def gain_by_root_kl(gain: float, kl: float) -> float:
    """Return what a policy gained over its start by the root of its KL."""
    return float(gain / _root(kl))


def _root(kl: ArrayLike) -> np.ndarray:
    """Return the root of KL divergences; estimates from samples may be below 0."""
    return np.sqrt(np.maximum(kl, 0.0))
