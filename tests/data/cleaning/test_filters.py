import dataclasses
from collections import Counter
from graphlib import TopologicalSorter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_jax.data.cleaning import filters
from rlhf_jax.data.cleaning.annotator_quality import Limits
from rlhf_jax.data.cleaning.filters import in_cycle, take
from rlhf_jax.data.cleaning.votes import read_votes
from rlhf_jax.data.records import Comparison, Prompt

LIMITS = Limits(min_known_right=0.8, max_contradicted=0.3, confidence=0.9)

TRUST_ALL = Limits(min_known_right=0.0, max_contradicted=1.0, confidence=0.9)


def clean(comparisons, limits=TRUST_ALL):
    """The comparisons that are kept, and how many were dropped, by reason."""
    votes = read_votes(comparisons, measure=lambda texts: map(len, texts))
    cleaning = filters.clean(votes, limits)
    kept = take(comparisons, cleaning.reason == 0, votes, cleaning)
    return [comparison for _, comparison in kept], cleaning.dropped()


def compare(
    prompt: str, a: str, b: str, preference: str, annotator="", known=""
) -> Comparison:
    record = Prompt("id", ({"role": "user", "content": prompt},))
    info = {"known_answer": known} if known else None
    return Comparison(record, a, b, preference, annotator, info=info)


def test_ties_empty_and_identical_responses_go_and_are_counted():
    good = compare("p", "x", "y", "a")
    kept, dropped = clean(
        [
            good,
            compare("p", "x", "z", "tie"),
            compare("p", " \n", "y", "b"),
            compare("p", "", "", "b"),
            compare("p", "y", "y\n", "a"),
        ]
    )
    assert kept == [good]
    assert dropped == {"tie": 1, "empty response": 2, "identical responses": 1}


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


def test_identical_responses_are_merged_before_cycles_are_sought():
    kept, dropped = clean(
        [
            compare("p", "x", "y", "a"),
            compare("p", " y\n", "z", "a"),
            compare("p", "z ", "x", "a"),
        ]
    )
    assert (kept, dropped) == ([], {"cycle": 3})


def test_equal_texts_under_different_prompts_of_one_id_do_not_meet():
    apart = [compare("p", "x", "y", "a"), compare("q", "x", "y", "b")]
    assert clean(apart)[0] == apart


def test_equal_messages_under_different_ids_are_one_prompt():
    first = compare("p", "x", "y", "a")
    second = dataclasses.replace(
        first, preference="b", prompt=dataclasses.replace(first.prompt, id="another")
    )
    assert clean([first, second]) == ([], {"annotators disagree": 2})


def test_prompts_whose_messages_join_to_the_same_text_stay_apart():
    def turns(*contents):
        messages = tuple({"role": "user", "content": text} for text in contents)
        return dataclasses.replace(
            compare("", "x", "y", "ab"[len(contents) % 2]), prompt=Prompt("p", messages)
        )

    both = [turns("one", "two"), turns("oneusertwo")]
    assert clean(both)[0] == both


def test_the_majority_of_annotators_decides_and_one_comparison_stands_for_the_pair():
    votes = [
        compare("p", "x", "y", "a", "ann"),
        compare("p", "y", "x", "b", "bob"),  # agrees, the other way round
        compare("p", "x", "y", "b", "cay"),
        compare("p", "x", "y", "tie", "dee"),
        compare("p", "x", "y", "a", "eve"),
    ]
    kept, dropped = clean(votes)
    assert dropped == {"same verdict, merged": 2, "outvoted": 1, "tie": 1}
    info = {"votes": {"for": ["ann", "bob", "eve"], "against": ["cay"], "tie": ["dee"]}}
    assert kept == [dataclasses.replace(votes[0], info=info)]


def test_annotators_as_many_on_either_side_leave_nothing():
    votes = [compare("p", "x", "y", "a", "ann"), compare("p", "x", "y", "b", "bob")]
    assert clean(votes) == ([], {"annotators disagree": 2})


def test_a_pair_that_most_call_a_tie_is_one_and_half_is_not_most():
    a, tie = compare("p", "x", "y", "a", "ann"), compare("p", "x", "y", "tie", "bob")
    other = dataclasses.replace(tie, annotator="cay")
    assert clean([a, tie, other]) == ([], {"tie": 3})
    kept, dropped = clean([a, tie])
    assert ([k.preference for k in kept], dropped) == (["a"], {"tie": 1})


def test_an_annotator_who_repeats_has_one_vote():
    votes = [compare("p", "x", "y", "a", "ann")] * 3
    against = [compare("p", "x", "y", "b", name) for name in ("bob", "cay")]
    kept, dropped = clean([*votes, *against])
    assert [k.preference for k in kept] == ["b"]
    assert kept[0].info["votes"] == {
        "for": ["bob", "cay"],
        "against": ["ann"],
        "tie": [],
    }
    assert dropped == {
        "own repeat, merged": 2,
        "outvoted": 1,
        "same verdict, merged": 1,
    }


def test_who_contradicts_an_own_repeat_has_no_vote_on_the_pair():
    votes = [compare("p", "x", "y", choice, "ann") for choice in "ab"]
    kept, dropped = clean([*votes, compare("p", "x", "y", "b", "bob")])
    assert [k.annotator for k in kept] == ["bob"]
    assert kept[0].info is None
    assert dropped == {"contradicts own repeat": 2}


def test_votes_without_an_annotator_are_of_one_person_each():
    kept, dropped = clean([compare("p", "x", "y", choice) for choice in "aab"])
    assert [k.preference for k in kept] == ["a"]
    assert dropped == {"same verdict, merged": 1, "outvoted": 1}


def test_answers_to_known_answer_tasks_are_no_data():
    votes = [compare("p", "x", "y", "a", "ann", known="a")]
    assert clean(votes) == ([], {"known-answer task": 1})


def test_all_votes_of_a_careless_annotator_go():
    tests = [compare(f"t{i}", "x", "y", "b", "ann", known="a") for i in range(20)]
    votes = [compare("p", "x", "y", "a", "ann"), compare("p", "x", "y", "b", "bob")]
    kept, dropped = clean([*tests, *votes], LIMITS)
    assert kept == votes[1:]
    assert dropped == {"careless annotator": 21}


def test_comparisons_that_compare_nothing_are_no_evidence_against_an_annotator():
    same = [compare(f"t{i}", "x", "x ", "b", "ann", known="a") for i in range(20)]
    empty = [compare(f"t{i}", "x", "", "b", "ann", known="a") for i in range(20)]
    vote = compare("p", "x", "y", "a", "ann")
    assert clean([*same, *empty, vote], LIMITS)[0] == [vote]


def test_nothing_comes_of_nothing():
    assert clean([]) == ([], {})


names = st.sampled_from(["", "ann", "bob", "cay"])
comparisons = st.lists(
    st.builds(
        compare,
        st.sampled_from("pq"),
        st.sampled_from(["u", "v", "v ", "w", "x", "y", ""]),
        st.sampled_from(["u", "v", "w", "x", "y"]),
        st.sampled_from(["a", "b", "b", "tie"]),
        names,
        st.sampled_from(["", "", "", "a"]),
    ),
    max_size=30,
)


def said(comparison: Comparison) -> tuple[str, str, str]:
    """(prompt, better, worse)"""
    prompt = comparison.prompt.messages[0]["content"]
    return prompt, comparison.chosen.strip(), comparison.rejected.strip()


def has_cycle(edges) -> bool:
    graph = TopologicalSorter()
    for prompt, better, worse in edges:
        graph.add((prompt, better), (prompt, worse))
    try:
        graph.prepare()
    except ValueError:
        return True
    return False


@given(comparisons)
@settings(max_examples=150, deadline=None)
def test_what_remains_has_no_cycle_and_cleaning_again_changes_nothing(records):
    kept, dropped = clean(records, LIMITS)
    assert len(kept) + sum(dropped.values()) == len(records)
    assert not has_cycle(map(said, kept))
    assert clean(kept, LIMITS) == (kept, {})


@given(comparisons, st.randoms())
@settings(max_examples=100, deadline=None)
def test_the_order_of_the_comparisons_and_of_their_responses_decides_nothing(
    records, random
):
    def turned(c: Comparison) -> Comparison:
        flip = {"a": "b", "b": "a", "tie": "tie"}
        info = c.info and {"known_answer": flip[c.info["known_answer"]]}
        return dataclasses.replace(
            c,
            response_a=c.response_b,
            response_b=c.response_a,
            preference=flip[c.preference],
            info=info,
        )

    kept, dropped = clean(records, LIMITS)
    shuffled = [turned(c) if random.random() < 0.5 else c for c in records]
    random.shuffle(shuffled)
    again, dropped_again = clean(shuffled, LIMITS)
    assert sorted(map(said, kept)) == sorted(map(said, again))
    assert dropped == dropped_again


@given(comparisons)
@settings(max_examples=100, deadline=None)
def test_the_same_as_a_plain_loop(records):
    """Steps 1, 4, 5 and 6 over again, in dictionaries."""
    records = [c for c in records if c.info is None]
    verdicts = {}  # (prompt, pair) -> voter -> Counter of what is better
    for i, c in enumerate(records):
        prompt, better, worse = said(c)
        if better != worse and better and worse:
            pair = (prompt, frozenset([better, worse]))
            voter = c.annotator or i
            said_so = "tie" if c.preference == "tie" else better
            verdicts.setdefault(pair, {}).setdefault(voter, Counter())[said_so] += 1

    def majority(votes: Counter):
        if votes["tie"] * 2 > votes.total():
            return "tie"
        ranked = Counter({k: v for k, v in votes.items() if k != "tie"}).most_common(2)
        split = len(ranked) == 2 and ranked[0][1] == ranked[1][1]
        return ranked[0][0] if ranked and not split else None

    edges = []
    for (prompt, pair), voters in verdicts.items():
        outcome = majority(Counter(filter(None, map(majority, voters.values()))))
        if outcome in pair:
            (worse,) = pair - {outcome}
            edges.append((prompt, outcome, worse))
    acyclic = [
        (prompt, better, worse)
        for prompt, better, worse in edges
        if not reaches((prompt, worse), (prompt, better), edges)
    ]
    assert sorted(map(said, clean(records)[0])) == sorted(acyclic)


def reaches(start, goal, edges) -> bool:
    """Return True if a path leads from one (prompt, response) to another."""
    seen, stack = set(), [start]
    while stack:
        node = stack.pop()
        if node == goal:
            return True
        if node not in seen:
            seen.add(node)
            stack += [(p, worse) for p, better, worse in edges if (p, better) == node]
    return False


@pytest.mark.parametrize(
    ("edges", "expected"),
    [
        ([], []),
        ([(0, 1), (1, 0)], [True, True]),
        ([(0, 1), (1, 2), (2, 0), (2, 3), (4, 0)], [True] * 3 + [False] * 2),
        ([(0, 1), (1, 0), (1, 2), (2, 3), (3, 2)], [True, True, False, True, True]),
    ],
)
def test_edges_inside_a_strongly_connected_component_are_cyclic(edges, expected):
    better, worse = np.array(edges, int).reshape(-1, 2).T
    assert in_cycle(better, worse).tolist() == expected
