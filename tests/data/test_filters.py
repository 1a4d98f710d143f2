from graphlib import TopologicalSorter

from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_jax.data.filters import clean
from rlhf_jax.data.records import Comparison, Prompt


def compare(prompt: str, a: str, b: str, preference: str) -> Comparison:
    record = Prompt(prompt, ({"role": "user", "content": prompt},))
    return Comparison(record, a, b, preference)


def test_ties_empty_and_identical_responses_go_and_are_counted():
    good = compare("p", "x", "y", "a")
    kept, dropped = clean(
        [
            good,
            compare("p", "x", "z", "tie"),
            compare("p", "", "y", "b"),
            compare("p", "y", "y", "a"),
        ]
    )
    assert kept == [good]
    assert dropped == {"tie": 1, "empty response": 1, "identical responses": 1}


def test_a_cycle_goes_and_what_hangs_on_it_stays():
    cycle = [
        compare("p", "x", "y", "a"),
        compare("p", "y", "z", "a"),
        compare("p", "x", "z", "b"),
    ]
    tail = compare("p", "z", "w", "a")
    kept, dropped = clean([*cycle, tail])
    assert kept == [tail]
    assert dropped == {"cycle": 3}


def test_the_same_pair_both_ways_round_is_a_cycle():
    both = [compare("p", "x", "y", "a"), compare("p", "y", "x", "a")]
    assert clean(both) == ([], {"cycle": 2})


def test_equal_texts_under_different_prompts_do_not_make_a_cycle():
    apart = [compare("p", "x", "y", "a"), compare("q", "x", "y", "b")]
    assert clean(apart)[0] == apart


comparisons = st.lists(
    st.builds(
        compare,
        st.sampled_from("pq"),
        st.sampled_from("uvwxyz"),
        st.sampled_from("uvwxyz"),
        st.sampled_from(["a", "b", "tie"]),
    ),
    max_size=25,
)


@given(comparisons)
@settings(max_examples=100, deadline=None)
def test_what_remains_has_no_cycle_and_cleaning_again_changes_nothing(records):
    kept, dropped = clean(records)
    assert len(kept) + sum(dropped.values()) == len(records)
    graph = TopologicalSorter()
    for c in kept:
        graph.add((c.prompt.id, c.chosen), (c.prompt.id, c.rejected))
    graph.prepare()  # raises if there is a cycle
    assert clean(kept) == (kept, {})
