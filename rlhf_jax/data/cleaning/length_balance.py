"""Length balancing against a bias for long answers (ChatGLM-RLHF, section 2).

Pairs are sorted into buckets of equal width by the difference of their lengths. Inside
each bucket random pairs of the larger side are dropped, so that the better response is
the longer in as many pairs as it is the shorter.
"""

from typing import NamedTuple

import numpy as np


class Balance(NamedTuple):
    """The pairs to keep, and the counts of each bucket before and after balancing."""

    keep: np.ndarray  # bool [pairs]: True if kept
    bucket: np.ndarray  # int [buckets]: lowest |difference| of the bucket, in tokens
    longer: np.ndarray  # int [buckets]: pairs whose better response is the longer
    shorter: np.ndarray  # int [buckets]: pairs whose better response is the shorter
    kept: np.ndarray  # int [buckets]: pairs kept on each side


def length_balance(
    chosen_lengths: np.ndarray, rejected_lengths: np.ndarray, *, width: int, seed: int
) -> Balance:
    """Balance pairs by length, in tokens. Pairs of equal length are all kept.

    Args:
        width: the width of the buckets [0, width), [width, 2 width), ..., in tokens;
            the paper gives no value.
        seed: the seed of the choice among the pairs of a larger side.
    """
    if width < 1:
        raise ValueError(f"{width=} must be at least 1 token.")
    difference = np.asarray(chosen_lengths) - np.asarray(rejected_lengths)
    bucket = np.abs(difference) // width
    order = np.random.default_rng(seed).permutation(len(difference))
    count = int(bucket.max(initial=0)) + 1
    longer = np.bincount(bucket[difference > 0], minlength=count)
    shorter = np.bincount(bucket[difference < 0], minlength=count)
    kept = np.minimum(longer, shorter)
    keep = difference == 0
    for side in (difference > 0, difference < 0):
        shuffled = order[side[order]]
        rank = _rank_in_group(bucket[shuffled])
        keep[shuffled[rank < kept[bucket[shuffled]]]] = True
    return Balance(keep, np.arange(count) * width, longer, shorter, kept)


def _rank_in_group(groups: np.ndarray) -> np.ndarray:
    """Number the members of each group 0, 1, 2, ... in order of appearance."""
    order = np.argsort(groups, kind="stable")
    starts = np.r_[0, np.flatnonzero(np.diff(groups[order])) + 1]
    sizes = np.diff(np.r_[starts, len(groups)])
    rank = np.empty(len(groups), int)
    rank[order] = np.arange(len(groups)) - np.repeat(starts, sizes)
    return rank
