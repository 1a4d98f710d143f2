import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_jax.data.cleaning.length_balance import length_balance


def test_each_bucket_keeps_as_many_longer_as_shorter():
    # width 10; differences: bucket 0: +3 +5 -2, bucket 1: +12 -15 -11, equal: 0
    chosen = np.array([13, 15, 10, 22, 10, 10, 10])
    rejected = np.array([10, 10, 12, 10, 25, 21, 10])
    out = length_balance(chosen, rejected, width=10, seed=0)
    assert out.bucket.tolist() == [0, 10]
    assert out.longer.tolist() == [2, 1]
    assert out.shorter.tolist() == [1, 2]
    assert out.kept.tolist() == [1, 1]
    assert out.keep[[2, 3, 6]].all()  # the smaller sides, and the equal pair
    assert out.keep[[0, 1]].sum() == 1
    assert out.keep[[4, 5]].sum() == 1


def test_a_bucket_with_one_side_only_is_emptied():
    out = length_balance(np.array([9, 8]), np.array([1, 1]), width=4, seed=0)
    assert not out.keep.any()


def test_there_are_as_many_buckets_as_the_largest_difference_needs():
    out = length_balance(np.array([9, 8]), np.array([9, 8]), width=4, seed=0)
    assert out.bucket.tolist() == [0]


lengths = st.lists(
    st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=0, max_size=80
)


@given(lengths, st.integers(1, 20), st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_balanced_exactly_and_nothing_of_the_smaller_side_is_lost(pairs, width, seed):
    chosen, rejected = np.array(pairs, int).reshape(-1, 2).T
    out = length_balance(chosen, rejected, width=width, seed=seed)
    difference = chosen - rejected
    for low in range(0, 60, width):
        inside = (np.abs(difference) >= low) & (np.abs(difference) < low + width)
        sides = [inside & (difference > 0), inside & (difference < 0)]
        before = [int(side.sum()) for side in sides]
        after = [int((side & out.keep).sum()) for side in sides]
        assert after == [min(before)] * 2
    assert out.keep[difference == 0].all()


def test_the_seed_decides_who_goes():
    chosen, rejected = np.arange(50) % 5 + 2, np.ones(50, int)
    rejected[:10] += 20
    keep = [length_balance(chosen, rejected, width=100, seed=s).keep for s in (0, 0, 1)]
    assert np.array_equal(keep[0], keep[1])
    assert not np.array_equal(keep[0], keep[2])


def test_a_bucket_without_width_is_refused():
    with pytest.raises(ValueError, match="width=0 must be at least 1"):
        length_balance(np.array([1]), np.array([2]), width=0, seed=0)
