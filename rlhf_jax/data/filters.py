"""Cleaning of comparisons: ties and cycles out (ChatGLM-RLHF, arXiv 2404.00934, 1).

A cycle is one in the directed graph "better than" over the responses to a prompt.
Every comparison inside a strongly connected component of that graph goes.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from rlhf_jax.data.records import Comparison


def clean(comparisons: Sequence[Comparison]) -> tuple[list[Comparison], Counter]:
    """The comparisons that agree with each other, and how many were dropped, by reason.

    Reasons: "empty response", "identical responses", "tie", "cycle". Cleaning twice
    changes nothing more.
    """
    dropped = Counter()
    decided = []
    for comparison in comparisons:
        if not comparison.response_a.strip() or not comparison.response_b.strip():
            dropped["empty response"] += 1
        elif comparison.response_a == comparison.response_b:
            dropped["identical responses"] += 1
        elif comparison.preference == "tie":
            dropped["tie"] += 1
        else:
            decided.append(comparison)
    cyclic = in_cycle(decided)
    dropped["cycle"] = int(cyclic.sum())
    kept = [c for c, bad in zip(decided, cyclic, strict=True) if not bad]
    return kept, +dropped


def in_cycle(comparisons: Sequence[Comparison]) -> np.ndarray:
    """Which comparisons (none a tie) stand in a cycle: bool [comparisons].

    One graph over all prompts: its nodes are the distinct (prompt, response).
    """
    if not comparisons:
        return np.zeros(0, bool)
    nodes: dict[tuple[str, str], int] = defaultdict(lambda: len(nodes))
    better = np.array([nodes[c.prompt.id, c.chosen] for c in comparisons])
    worse = np.array([nodes[c.prompt.id, c.rejected] for c in comparisons])
    edges = coo_array((np.ones(len(better)), (better, worse)), shape=(len(nodes),) * 2)
    _, component = connected_components(edges, directed=True, connection="strong")
    return component[better] == component[worse]
