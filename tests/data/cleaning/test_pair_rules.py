"""Rules that make pairs of scored responses, and what they leave out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from rlhf_jax.data.cleaning.pair_rules import (
    RULES,
    make_pairs,
    pair_all,
    pair_at_random,
    pair_ranks,
    usable_pairs,
)

SCORES = np.array([[0.5, 2.0, -1.0, 1.0], [3.0, 0.0, 1.0, 2.0]])


def test_best_against_worst():
    np.testing.assert_array_equal(pair_ranks(SCORES, 0, -1), [[0, 1, 2], [1, 0, 1]])


def test_best_against_median():
    np.testing.assert_array_equal(pair_ranks(SCORES, 0, 2), [[0, 1, 0], [1, 0, 2]])


@pytest.mark.parametrize("ranks", [(0, 0), (2, 1), (-1, 0), (0, 4), (-5, 1)])
def test_ranks_that_make_no_pair_are_refused(ranks):
    with pytest.raises(ValueError, match="ranks of 4 responses"):
        pair_ranks(SCORES, *ranks)


def test_every_pair_by_hand():
    np.testing.assert_array_equal(
        pair_all(SCORES[:, :3]),
        [[0, 1, 0], [0, 0, 2], [0, 1, 2], [1, 0, 1], [1, 0, 2], [1, 2, 1]],
    )


def test_random_pairs_differ_and_reach_every_pair():
    scores = np.tile(SCORES[:1], (300, 1))
    pairs = pair_at_random(scores, np.random.default_rng(0))
    found = {tuple(pair[1:]) for pair in pairs}
    assert found == {tuple(pair[1:]) for pair in pair_all(SCORES[:1])}
    again = pair_at_random(scores, np.random.default_rng(0))
    np.testing.assert_array_equal(pairs, again)


@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 5), st.integers(2, 6)),
        elements=st.floats(-10, 10, width=32),
    ),
    st.sampled_from(RULES),
)
def test_the_chosen_response_is_never_the_worse(scores, rule):
    pairs = make_pairs(scores, rule, chosen_rank=0, rejected_rank=-1, seed=0)
    prompt, chosen, rejected = pairs.T
    assert (scores[prompt, chosen] >= scores[prompt, rejected]).all()
    assert (chosen != rejected).all()
    assert set(prompt) == set(range(len(scores)))


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="rule='best' must be one of ranks, random"):
        make_pairs(SCORES, "best", chosen_rank=0, rejected_rank=-1, seed=0)


def test_what_teaches_nothing_is_left_out_and_counted():
    scores = np.array(
        [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [np.nan, 1.0], [1.0, 0.0]]
    )
    texts = [["a", "b"]] * 6
    texts[1:3] = [["same", "same"], ["a", " "]]
    prompts = ["p", "q", "r", "s", "t", "p"]
    pairs = pair_ranks(scores, 0, -1)
    kept, dropped = usable_pairs(pairs, scores, prompts, texts, min_margin=0.0)
    np.testing.assert_array_equal(kept, [[0, 0, 1]])
    assert dropped == {
        "identical responses": 1,
        "empty response": 1,
        "margin too small": 1,
        "score not finite": 1,
        "duplicate": 1,
    }


def test_only_margins_above_the_threshold_are_kept():
    texts = [list("abcd"), list("efgh")]
    pairs = pair_all(SCORES)
    kept, dropped = usable_pairs(pairs, SCORES, ["p", "q"], texts, min_margin=1.5)
    prompt, chosen, rejected = kept.T
    assert (SCORES[prompt, chosen] - SCORES[prompt, rejected] > 1.5).all()
    assert dropped == {"margin too small": len(pairs) - len(kept)}
    assert len(kept) == 5


def test_nothing_left_is_an_empty_table():
    kept, _ = usable_pairs(
        pair_ranks(SCORES, 0, -1), SCORES, ["p", "q"], [["x"] * 4] * 2, min_margin=0.0
    )
    assert kept.shape == (0, 3)
