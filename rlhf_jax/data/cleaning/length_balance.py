"""Length balancing against the liking for long answers (ChatGLM-RLHF, section 2).

Pairs go into buckets of equal width by the difference of their lengths. Inside each
bucket as many pairs are kept in which the better response is the longer as pairs in
which it is the shorter, by dropping at random from the larger side.
"""

from typing import NamedTuple

import numpy as np


class Balance(NamedTuple):
    """Which pairs are kept, and for each bucket how many there were and are left."""

    keep: np.ndarray  # bool [pairs]
    bucket: np.ndarray  # int [buckets]: its lowest |difference|
    longer: np.ndarray  # int [buckets]: pairs in which the better is the longer
    shorter: np.ndarray  # int [buckets]
    kept: np.ndarray  # int [buckets]: pairs kept on either side


def length_balance(
    chosen_lengths: np.ndarray, rejected_lengths: np.ndarray, *, width: int, seed: int
) -> Balance:
    """Balance pairs by length, in tokens. Pairs of equal length are all kept.

    Args:
        width: of a bucket: [0, width), [width, 2 width), ...; the paper gives no value.
        seed: decides which pairs of the larger side go.
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
    """0, 1, 2, ... for the members of each group, in order of appearance."""
    order = np.argsort(groups, kind="stable")
    starts = np.r_[0, np.flatnonzero(np.diff(groups[order])) + 1]
    sizes = np.diff(np.r_[starts, len(groups)])
    rank = np.empty(len(groups), int)
    rank[order] = np.arange(len(groups)) - np.repeat(starts, sizes)
    return rank
