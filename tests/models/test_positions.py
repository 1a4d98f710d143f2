"""Positions against a plain loop over what each token sees."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_jax.models.attention import visible
from rlhf_jax.models.positions import count_before, prefix, two_axes

START, GMASK, MASK = 9, 8, 7


@settings(max_examples=30, deadline=None)
@given(
    mask=st.lists(st.booleans(), min_size=12, max_size=12),
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    second=st.integers(0, 12),
)
def test_positions_and_visibility_equal_a_plain_loop(mask, lengths, second):
    """For any mask, holes and padding between responses included, and for two examples
    in the row, of which one may be empty."""
    segments = np.repeat(np.arange(5), [*lengths, *[12] * (5 - len(lengths))])[:12]
    segments = np.concatenate([segments[:second], segments])[:12]
    examples = (np.arange(12) >= second).astype(int)
    seen = np.zeros((12, 12), bool)
    for i in range(12):
        for j in range(i + 1):
            is_same = examples[i] == examples[j]
            seen[i, j] = mask[j] and is_same and segments[j] in (0, segments[i])
    mask, segments, examples = (jnp.array([x]) for x in (mask, segments, examples))
    both = {"segments": segments, "examples": examples}
    found = visible(mask, query_slots=jnp.arange(12), **both)
    np.testing.assert_array_equal(found[0], seen)
    before = (seen & ~np.eye(12, dtype=bool)).sum(axis=1)
    np.testing.assert_array_equal(count_before(mask, **both)[0], before)


def two_axes_of(row, mask=None, segments=None):
    tokens = jnp.array([row])
    mask = jnp.ones(tokens.shape, bool) if mask is None else jnp.array([mask])
    segments = None if segments is None else jnp.array([segments])
    places = count_before(mask, segments)
    found = prefix(
        tokens, mask, places, segments, start_token=START, mask_tokens=(GMASK, MASK)
    )
    first, second = np.asarray(two_axes(places, *found))[0].T
    return first.tolist(), second.tolist()


def test_gmask_gives_the_position_of_what_follows():
    first, second = two_axes_of([1, 2, GMASK, START, 3, 4])
    assert first == [0, 1, 2, 2, 2, 2]
    assert second == [0, 0, 0, 1, 2, 3]


def test_a_blank_can_stand_inside_the_context():
    first, second = two_axes_of([1, MASK, 2, START, 3, MASK])
    assert first == [0, 1, 2, 1, 1, 1]
    assert second == [0, 0, 0, 1, 2, 3]


def test_gmask_comes_before_mask_and_the_response_does_not_count():
    first, _ = two_axes_of([MASK, 2, GMASK, START, GMASK, START])
    assert first == [0, 1, 2, 2, 2, 2]
    first, _ = two_axes_of([1, MASK, START, GMASK])
    assert first == [0, 1, 1, 1]


def test_padding_shifts_nothing():
    row, mask = [GMASK, 5, START, 1, GMASK, START, 3], [0, 0, 0, 1, 1, 1, 1]
    first, second = two_axes_of(row, np.array(mask, bool))
    assert (first[3:], second[3:]) == ([0, 1, 1, 1], [0, 0, 1, 2])


def test_blocks_start_again_for_each_response():
    row, segments = [1, GMASK, START, 2, 3, 4, 5], [0, 0, 0, 1, 1, 2, 2]
    first, second = two_axes_of(row, segments=segments)
    assert first == [0, 1, 1, 1, 1, 1, 1]
    assert second == [0, 0, 1, 2, 3, 2, 3]


def test_without_a_start_token_a_row_is_causal():
    first, second = two_axes_of([1, 2, 3])
    assert (first, second) == ([0, 0, 0], [1, 2, 3])


def test_the_context_is_visible_to_itself():
    mask = jnp.array([[False, True, True, True, True]])
    seen = visible(mask, query_slots=jnp.arange(5), context=jnp.array([2]))
    picture = [
        [0, 1, 1, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 1, 1, 1, 0],
        [0, 1, 1, 1, 1],
    ]
    np.testing.assert_array_equal(seen[0], np.array(picture, bool))
