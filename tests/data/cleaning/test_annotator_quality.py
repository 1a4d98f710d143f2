import itertools

import numpy as np
import pytest
from scipy.stats import binomtest

from rlhf_jax.data.cleaning.annotator_quality import (
    Annotators,
    Limits,
    agreement,
    alpha,
    judge,
    nominal_alpha,
)
from rlhf_jax.data.cleaning.votes import read_votes
from rlhf_jax.data.records import Comparison, Prompt

LIMITS = Limits(min_known_right=0.8, max_contradicted=0.3, confidence=0.9)


def vote(prompt, preference, annotator="ann", a="x", b="longer", **fields):
    record = Prompt("p", ({"role": "user", "content": str(prompt)},))
    return Comparison(record, a, b, preference, annotator, **fields)


def votes_of(comparisons):
    return read_votes(comparisons, measure=lambda texts: map(len, texts))


def judged(comparisons, limits=LIMITS) -> Annotators:
    return judge(votes_of(comparisons), np.ones(len(comparisons), bool), limits)


def known(right: int, wrong: int, annotator="ann"):
    answers = ["b"] * right + ["a"] * wrong
    return [
        vote(i, answer, annotator, info={"known_answer": "b"})
        for i, answer in enumerate(answers)
    ]


def repeats(same: int, contradicted: int, annotator="ann"):
    return [
        vote(i, choice, annotator)
        for i in range(same + contradicted)
        for choice in ("a", "a" if i < same else "b")
    ]


def test_who_answers_known_tasks_at_random_is_out_and_who_is_right_is_not():
    found = judged([*known(10, 10), *known(17, 3, "bob")])
    assert found.names == ["ann", "bob"]
    assert found.known_right.count.tolist() == [10, 17]
    assert found.known_right.of.tolist() == [20, 20]
    assert found.careless.tolist() == [True, False]


def test_nobody_goes_on_little_evidence():
    assert not judged(known(0, 1)).careless.any()
    assert judged(known(0, 2)).careless.all()  # 0.8 right: 1 in 25 has two wrong
    assert not judged(repeats(0, 2)).careless.any()
    assert judged(repeats(0, 3)).careless.all()  # 0.3 contradicted: 1 in 37 has three


def test_intervals_are_those_of_clopper_and_pearson():
    found = judged([*known(3, 17), *known(5, 0, "bob"), *known(0, 4, "cay")])
    for i, (count, of) in enumerate([(3, 20), (5, 5), (0, 4)]):
        expected = binomtest(count, of).proportion_ci(0.9, method="exact")
        share = found.known_right
        assert (share.low[i], share.high[i]) == pytest.approx(tuple(expected))


def test_no_evidence_is_the_widest_interval():
    found = judged([vote(0, "tie")])
    for share in (found.known_right, found.contradicted, found.longer_chosen):
        assert (share.of[0], share.low[0], share.high[0]) == (0, 0.0, 1.0)
    assert not found.careless.any()
    assert np.isnan(found.kappa).all()


def test_a_tie_on_a_known_answer_is_wrong_and_in_a_repeat_no_contradiction():
    assert judged([vote(0, "tie", info={"known_answer": "b"})]).known_right.count == [0]
    found = judged([vote(0, "a"), vote(0, "tie")])
    assert (found.contradicted.count, found.contradicted.of) == ([0], [0])


def test_who_contradicts_own_repeats_is_out():
    found = judged([*repeats(10, 10), *repeats(17, 3, "bob")])
    assert found.contradicted.count.tolist() == [10, 3]
    assert found.contradicted.of.tolist() == [20, 20]
    assert found.careless.tolist() == [True, False]


def test_a_repeat_in_the_other_order_is_one():
    both = [vote(0, "a"), vote(0, "a", a="longer", b="x")]
    found = judged(both)
    assert (found.contradicted.count, found.contradicted.of) == ([1], [1])


def test_of_many_repeats_as_many_contradict_as_of_all_their_pairs():
    """A coin contradicts half of its repeats, however often each is asked."""
    rng = np.random.default_rng(0)
    for times in (2, 3, 5):
        coins = [
            vote(i, "ab"[rng.integers(2)]) for i in range(2000) for _ in range(times)
        ]
        found = judged(coins).contradicted
        assert found.of[0] == 2000 * (times - 1)
        assert found.count[0] / found.of[0] == pytest.approx(0.5, abs=0.02)


def test_two_annotators_judging_one_pair_are_no_repeat():
    assert judged([vote(0, "a"), vote(0, "b", "bob")]).contradicted.of.tolist() == [
        0,
        0,
    ]


def test_votes_without_an_annotator_are_judged_as_nobodys():
    found = judged([*known(0, 20, annotator=""), *known(20, 0)])
    assert found.names == ["ann"]
    assert found.votes.tolist() == [20]
    assert not found.careless.any()


def test_position_and_length_bias_are_shares_of_the_votes_that_can_show_them():
    found = judged(
        [
            vote(0, "a", shown_first="a"),
            vote(1, "b", shown_first="b"),
            vote(2, "b", shown_first="a"),
            vote(3, "tie", shown_first="a"),
            vote(4, "b"),  # the order is not known
            vote(5, "a", a="same", b="size", shown_first="a"),
        ]
    )
    assert (found.first_chosen.count, found.first_chosen.of) == ([3], [4])
    assert (found.longer_chosen.count, found.longer_chosen.of) == ([3], [4])


def test_kappa_is_one_in_agreement_zero_by_chance_and_negative_in_opposition():
    rng = np.random.default_rng(0)
    flip = {"a": "b", "b": "a"}
    comparisons = []
    for i in range(2000):
        truth = "ab"[rng.integers(2)]
        comparisons += [vote(i, truth, name) for name in ("ann", "bob")]
        comparisons.append(vote(i, "ab"[rng.integers(2)], "coin"))
        comparisons.append(vote(i, flip[truth], "dee"))
    without_dee = [c for c in comparisons if c.annotator != "dee"]
    found = judged(without_dee)
    assert found.names == ["ann", "bob", "coin"]
    # Where the coin differs, the others of ann are split and say nothing.
    assert found.kappa[:2] == pytest.approx([1.0, 1.0])
    assert found.kappa[2] == pytest.approx(0.0, abs=0.06)
    assert judged(comparisons).kappa[3] < -0.9


def test_agreement_is_the_kappa_of_the_votes_with_the_others():
    # Two annotators differ on one pair of four: observed 3/4.
    pairs = zip(range(4), "aabb", "aaba", strict=True)
    each = [(vote(i, x), vote(i, y, "bob")) for i, x, y in pairs]
    votes = votes_of(list(itertools.chain(*each)))
    for_one = (votes.verdict == 1).mean()  # by the order of the hashes
    by_chance = for_one**2 + (1 - for_one) ** 2
    expected = (0.75 - by_chance) / (1 - by_chance)
    assert agreement(votes, np.ones(8, bool)) == pytest.approx(expected)


def test_a_tie_of_the_others_can_be_agreed_with_and_a_split_says_nothing():
    votes = [vote(i, "a", name) for i in range(6) for name in ("ann", "bob")]
    votes += [vote(i, "tie", name) for i in range(6, 12) for name in ("bob", "cay")]
    without_ties = judged([*votes, *(vote(i, "a") for i in range(6, 9))]).kappa[0]
    with_ties = judged([*votes, *(vote(i, "tie") for i in range(6, 9))]).kappa[0]
    assert without_ties < with_ties == pytest.approx(1.0)
    splits = [vote(i, "a", "cay") for i in range(20, 30)]
    splits += [vote(i, "b", "bob") for i in range(20, 30)]
    splits += [vote(i, "a") for i in range(20, 30)]
    ties = [vote(i, "tie") for i in range(6, 9)]
    assert judged([*votes, *ties, *splits]).kappa[0] == pytest.approx(with_ties)


def test_more_ties_than_votes_for_one_are_a_majority_for_neither():
    votes = [vote(i, "a", name) for i in range(6) for name in ("ann", "bob")]
    for i in range(6, 12):
        votes += [vote(i, "tie", name) for name in ("ann", "bob", "cay")]
        votes.append(vote(i, "a", "dee"))
    assert judged(votes).kappa[0] == pytest.approx(1.0)


def test_nobody_to_agree_with_is_nan():
    assert np.isnan(agreement(votes_of([vote(0, "a")]), np.ones(1, bool)))


def test_alpha_is_krippendorffs_own_example():
    """Four observers of twelve units; 0 is no answer."""
    text = "1101 2232 3333 3333 2222 1234 4444 1121 2222 0555 0011 0030"
    values = [
        (i, int(x)) for i, unit in enumerate(text.split()) for x in unit if x != "0"
    ]
    assert nominal_alpha(*np.transpose(values)) == pytest.approx(0.743, abs=5e-4)


def test_alpha_counts_each_annotator_once_and_pairs_with_several():
    votes = [vote(i, x, "ann") for i, x in enumerate("aabb")]
    votes += [vote(i, x, "bob") for i, x in enumerate("aaba")]

    def of(*more):
        read = votes_of([*votes, *more])
        return alpha(read, np.ones(len(read.pair), bool))

    assert -1 < of() < 1
    again, alone, nobody = vote(0, "b"), vote(9, "b", "cay"), vote(0, "b", "")
    assert of(again) == of(alone) == of(nobody) == of()
    assert of(vote(0, "b", "cay")) < of()
    assert np.isnan(alpha(votes_of([alone]), np.ones(1, bool)))


def test_limits_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"confidence=1.5 must be from 0 to 1"):
        Limits(min_known_right=0.8, max_contradicted=0.3, confidence=1.5)
