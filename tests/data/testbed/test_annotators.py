"""Simulated annotators do what their kind says, measured over many comparisons."""

from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from rlhf_jax.data.testbed import stock
from rlhf_jax.data.testbed.annotators import (
    CARELESS,
    CONTRADICTORY,
    HONEST,
    Annotator,
    AnnotatorConfig,
    annotate,
    make_annotators,
)
from rlhf_jax.data.testbed.pools import TestbedConfig, demonstrate, make_testbed
from rlhf_jax.data.testbed.quality import true_quality
from rlhf_jax.data.testbed.styles import Style, respond
from rlhf_jax.data.testbed.tasks import key_of, task_of
from rlhf_jax.data.testbed.world import world_of

PROMPTS = make_testbed(TestbedConfig(num_sft=0, num_sft_test=0)).eval_prompts
FAIR = AnnotatorConfig(length_bias=0.0, position_bias=0.0, noise=0.0)


def annotator(kind=HONEST, calls_ties=False, **config):
    return Annotator("a", kind, calls_ties, replace(FAIR, **config))


def good(prompt, rng):
    return respond(task_of(prompt), rng, right=True)


def bad(prompt, rng):
    return respond(task_of(prompt), rng, right=False, suited=False)


def padded(prompt, rng):
    fillers = rng.permutation(stock.FILLERS[stock.FORMAL])[:3].tolist()
    return Style("", tuple(fillers), "").dress(key_of(task_of(prompt)).answers[0])


def opening(prompt):
    return stock.OPENINGS[world_of(100).registers[prompt.intent]][0]


def share_of_a(who, pairs, rng, field="preference"):
    labels = [getattr(annotate(*pair, who, rng), field) for pair in pairs]
    return labels.count("a") / len(labels)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_the_same_generator_state_gives_the_same_annotation(rng):
    pair = good(PROMPTS[0], rng), bad(PROMPTS[0], rng)
    first, second = (
        annotate(PROMPTS[0], *pair, annotator(), np.random.default_rng(5))
        for _ in range(2)
    )
    assert first == second


def test_honest_annotators_prefer_what_is_better(rng):
    pairs = [(p, good(p, rng), bad(p, rng)) for p in PROMPTS]
    assert share_of_a(annotator(), pairs, rng) > 0.9


def test_honest_choices_follow_bradley_and_terry(rng):
    prompt = PROMPTS[0]
    key = key_of(task_of(prompt))
    a, b = key.answers[0], f"{opening(prompt)} {key.answers[0]}"
    gap = true_quality(prompt, a) - true_quality(prompt, b)
    share = share_of_a(annotator(sharpness=1.0), [(prompt, a, b)] * 4000, rng)
    assert share == pytest.approx(1 / (1 + np.exp(-gap)), abs=0.03)


def test_length_bias_makes_the_longer_response_win_more_often(rng):
    pairs = [(p, padded(p, rng), good(p, rng)) for p in PROMPTS]
    shares = [
        share_of_a(annotator(length_bias=bias, sharpness=0.3), pairs, rng)
        for bias in (-0.1, 0.0, 0.1)
    ]
    assert shares[0] < shares[1] < shares[2]
    assert shares[2] > shares[1] + 0.05


def test_position_bias_favours_the_response_shown_first(rng):
    pairs = [(p, good(p, rng), good(p, rng)) for p in PROMPTS] * 3
    found = [annotate(*pair, annotator(position_bias=2.0), rng) for pair in pairs]
    first = [note.preference == note.order_shown[0] for note in found]
    assert np.mean(first) > 0.75
    assert {note.order_shown for note in found} == {"ab", "ba"}


def test_careless_annotators_choose_at_random_and_fast(rng):
    pairs = [(p, good(p, rng), bad(p, rng)) for p in PROMPTS] * 4
    careless = annotator(CARELESS)
    assert share_of_a(careless, pairs, rng) == pytest.approx(0.5, abs=0.05)
    assert share_of_a(careless, pairs, rng, "fluency") == pytest.approx(0.5, abs=0.05)
    quick = np.mean([annotate(*pair, careless, rng).seconds for pair in pairs[:200]])
    slow = np.mean([annotate(*pair, annotator(), rng).seconds for pair in pairs[:200]])
    assert quick < 0.6 * slow


def cycles(who, rng):
    """The share of prompts whose three responses are preferred in a circle."""
    circles = 0
    for prompt in PROMPTS:
        three = [how(prompt, rng) for how in (good, padded, bad)]
        wins = Counter()
        for a, b in combinations(range(3), 2):
            note = annotate(prompt, three[a], three[b], who, rng)
            wins[a if note.preference == "a" else b] += 1
        circles += set(wins.values()) == {1}
    return circles / len(PROMPTS)


def test_contradictory_annotators_make_cycles_and_honest_ones_hardly(rng):
    assert cycles(annotator(CONTRADICTORY, contradiction=1.0), rng) > 0.12
    assert cycles(annotator(), rng) < 0.04


def test_ties_are_called_only_when_quality_is_close_and_only_by_some(rng):
    close = [(p, *[good(p, rng)] * 2) for p in PROMPTS]
    apart = [(p, good(p, rng), bad(p, rng)) for p in PROMPTS]
    caller, other = annotator(calls_ties=True), annotator()
    assert {annotate(*pair, caller, rng).preference for pair in close} == {"tie"}
    assert "tie" not in {annotate(*pair, other, rng).preference for pair in close}
    ties = [annotate(*pair, caller, rng).preference == "tie" for pair in apart]
    assert np.mean(ties) < 0.15


def test_criteria_are_judged_apart(rng):
    for prompt in [p for p in PROMPTS if p.intent == "open_question"]:
        key, suited = key_of(task_of(prompt)), opening(prompt)
        unsuited = next(
            texts[0] for texts in stock.OPENINGS.values() if suited not in texts
        )
        rude, wrong = f"{unsuited} {key.answers[0]}", f"{suited} {key.wrong[0]}"
        note = annotate(prompt, rude, wrong, annotator(), rng)
        assert (note.helpfulness, note.safety) == ("a", "b")
        answer = key.answers[0]
        broken = answer[0].lower() + answer[1:-1]
        note = annotate(prompt, broken, answer, annotator(), rng)
        assert (note.helpfulness, note.safety, note.fluency) == ("tie", "tie", "b")


def test_as_people_are_the_longer_wins_more_often_and_criteria_conflict(rng):
    """By the defaults, between demonstrations as a policy that learned them makes."""
    config = AnnotatorConfig()
    people, testbed = make_annotators(config), TestbedConfig()
    longer, conflict = [], []
    for prompt in PROMPTS * 4:
        a, b = (demonstrate(testbed, prompt, rng).response for _ in range(2))
        note = annotate(prompt, a, b, people[rng.integers(len(people))], rng)
        more = len(a.split()) - len(b.split())
        if note.preference != "tie" and more:
            longer.append((more > 0) == (note.preference == "a"))
        conflict.append({note.helpfulness, note.safety} == {"a", "b"})
    assert 0.56 < np.mean(longer) < 0.7
    assert 0.06 < np.mean(conflict) < 0.14


def test_who_is_what_is_exact_recorded_and_shuffled():
    config = AnnotatorConfig(careless_share=0.2, contradictory_share=0.1)
    people = make_annotators(config)
    kinds = [person.kind for person in people]
    assert Counter(kinds) == {HONEST: 14, CARELESS: 4, CONTRADICTORY: 2}
    assert kinds != sorted(kinds)
    assert len({person.id for person in people}) == 20
    note = annotate(PROMPTS[0], "a", "b", people[0], np.random.default_rng(0))
    assert (note.annotator, note.annotator_kind) == (people[0].id, people[0].kind)


def test_the_seed_decides_who_is_what():
    assert make_annotators(AnnotatorConfig()) == make_annotators(AnnotatorConfig())
    kinds = [
        [person.kind for person in make_annotators(AnnotatorConfig(seed=seed))]
        for seed in range(3)
    ]
    assert kinds[0] != kinds[1] or kinds[1] != kinds[2]


def test_shares_above_one_are_refused():
    with pytest.raises(ValueError, match="no room"):
        make_annotators(AnnotatorConfig(careless_share=0.8, contradictory_share=0.5))


def test_any_text_can_be_compared(rng):
    for text in ("", "\x00", "好", "a" * 5000, "{}"):
        note = annotate(PROMPTS[0], text, "The answer.", annotator(), rng)
        assert note.preference in ("a", "b", "tie")
        assert np.isfinite(note.seconds)
