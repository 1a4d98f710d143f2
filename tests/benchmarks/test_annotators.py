"""A small campaign of the benchmark: cleaning without sight of the truth serves it."""

import numpy as np
import pytest

from benchmarks.annotators import LIMITS, campaign, study
from rlhf_jax.data.records import CHOICES


@pytest.fixture(scope="module")
def comparisons():
    shares = {"known_share": 0.15, "repeat_share": 0.3, "careless_share": 0.2}
    shares["contradictory_share"] = 0.1
    return campaign(0, prompts=80, people=10, **shares)


def test_careless_annotators_are_found_and_honest_ones_stay(comparisons):
    found = study(comparisons, LIMITS, width=4, seed=0)
    assert found["out"]["careless"] == [2, 2]
    assert found["out"]["honest"] == [0, 7]


def test_cleaning_raises_agreement_with_true_quality_and_balancing_ends_the_length_bias(
    comparisons,
):
    found = study(comparisons, LIMITS, width=4, seed=0)
    assert found["agreement"]["cleaned"] > found["agreement"]["before"] + 0.04
    assert found["length_correlation"]["cleaned"] > 0.1
    assert abs(found["length_correlation"]["balanced"]) < 0.05


def test_tasks_have_known_answers_and_repeats_in_the_other_order(comparisons):
    known = [c for c in comparisons if "known_answer" in c.info]
    assert 0.05 < len(known) / len(comparisons) < 0.2
    assert {c.preference for c in comparisons} == set(CHOICES)
    seen, turned = {}, []
    for c in comparisons:
        pair = c.annotator, c.prompt.id, frozenset([c.response_a, c.response_b])
        if pair in seen:
            turned.append(seen[pair] != c.shown_first)
        seen[pair] = c.shown_first
    assert len(turned) > 50
    assert np.mean(turned) > 0.8
