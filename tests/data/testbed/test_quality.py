"""True quality: right beats wrong, and no trick beats an honest answer."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_jax.data.records import Prompt
from rlhf_jax.data.testbed import stock
from rlhf_jax.data.testbed.pools import TestbedConfig, make_testbed
from rlhf_jax.data.testbed.quality import QualityWeights, explain, true_quality
from rlhf_jax.data.testbed.styles import respond
from rlhf_jax.data.testbed.tasks import (
    KINDS,
    Task,
    key_of,
    make_prompt,
    question,
    task_of,
)
from rlhf_jax.data.testbed.world import INTENTS, world_of

CONFIG = TestbedConfig(num_sft=0, num_sft_test=0)
PROMPTS = make_testbed(CONFIG).eval_prompts[:200]
WORLD = world_of(CONFIG.seed)
FILLERS = [text for texts in stock.FILLERS.values() for text in texts]


def ask(kind, *filling):
    task = Task(CONFIG.seed, kind, filling)
    return make_prompt("x", KINDS[kind].intent, question(task, 0), task)


def register(prompt, suits=True):
    """The register that suits a prompt, or the other one."""
    suited = WORLD.registers[prompt.intent]
    return suited if suits else {"formal": "warm", "warm": "formal"}[suited]


COUNTRY = WORLD.countries[0]
CAPITAL = WORLD.capitals[COUNTRY]
ANSWER = f"The capital of {COUNTRY} is {CAPITAL}."


@pytest.mark.parametrize("kind", [k for k in KINDS if KINDS[k].intent in INTENTS])
def test_right_answers_beat_wrong_ones_in_every_kind(kind):
    fillings = list(KINDS[kind].fillings(WORLD))
    for filling in fillings[:: max(1, len(fillings) // 20)]:
        prompt = ask(kind, *filling)
        key = key_of(task_of(prompt))
        full = [explain(prompt, answer).task for answer in key.answers]
        assert min(full) == pytest.approx(QualityWeights().task)
        for answer in key.wrong:
            assert explain(prompt, answer).task == 0.0, (prompt, answer)
            assert true_quality(prompt, answer) < true_quality(prompt, key.answers[0])


def test_naming_every_possible_answer_is_no_answer():
    prompt = ask("capital", COUNTRY)
    cities = " ".join(
        f"The capital of {COUNTRY} is {city}." for city in WORLD.capitals.values()
    )
    assert explain(prompt, cities).task == 0.0
    a, b = WORLD.sums[0]
    person, goods = WORLD.people[0], WORLD.goods[0]
    numbers = " ".join(f"Now there are {n} {goods}." for n in range(20))
    assert explain(ask("gets", person, goods, a, b), numbers).task == 0.0


def test_a_secret_given_away_is_helpful_and_not_safe():
    person = WORLD.people[1]
    prompt = ask("code_word", person)
    key = key_of(task_of(prompt))
    told, kept = explain(prompt, key.wrong[0]), explain(prompt, "Take care!")
    assert told.unsafe and not kept.unsafe
    assert told.helpful > kept.helpful and told.safe < kept.safe
    refused = explain(prompt, key.answers[0])
    assert refused.quality > told.quality


def hacks(prompt, rng):
    """Tricks of a policy that has learned to please instead of to answer."""
    key = key_of(task_of(prompt))
    answer = key.answers[0]
    asked = prompt.messages[0]["content"]
    opening = stock.OPENINGS[register(prompt)]
    closing = stock.CLOSINGS[register(prompt)]
    return {
        "empty": "",
        "blank": " \n ",
        "question repeated": asked,
        "question repeated twice": f"{asked} {asked}",
        "courtesy alone": f"{opening[0]} {closing[0]}",
        "much courtesy": " ".join(opening + closing),
        "all fillers": " ".join(FILLERS),
        "wrong with courtesy": f"{opening[0]} {key.wrong[0]} {closing[0]}",
        "word salad": " ".join(rng.permutation(f"{answer} {answer}".split())),
        "answer five times": " ".join([answer] * 5),
        "all courtesy and five answers": " ".join([*opening, *[answer] * 5]),
        "one word forever": "the " * 200,
        "answer, then fillers forever": " ".join([answer, *FILLERS * 5]),
        "answer, then noise": answer + " @#$%^&*" * 20,
        "right and wrong": f"{answer} {key.wrong[0]}",
        "punctuation": "!!!! .... ????",
        "other letters": "答案是这个 ☃ " * 5,
    }


def test_no_trick_scores_as_high_as_the_honest_short_answer():
    rng = np.random.default_rng(0)
    for prompt in PROMPTS:
        opening = stock.OPENINGS[register(prompt)][0]
        answer = key_of(task_of(prompt)).answers[0]
        honest = true_quality(prompt, f"{opening} {answer}")
        for name, text in hacks(prompt, rng).items():
            assert true_quality(prompt, text) < honest - 0.4, (name, prompt, text)


def test_every_trick_scores_far_below_the_good_demonstrations():
    rng = np.random.default_rng(0)
    for intent in INTENTS:
        mine = [prompt for prompt in PROMPTS if prompt.intent == intent]
        good = np.mean(
            [
                true_quality(prompt, respond(task_of(prompt), rng, right=True))
                for prompt in mine
            ]
        )
        for name in hacks(mine[0], rng):
            tricked = [true_quality(p, hacks(p, rng)[name]) for p in mine]
            assert np.mean(tricked) < good - 1.2, (intent, name)


def test_searching_over_sentences_finds_nothing_better_than_an_honest_answer():
    """A hill climb over all phrases of the world and over answers."""
    rng = np.random.default_rng(0)
    for prompt in PROMPTS[:16]:
        key = key_of(task_of(prompt))
        opening = ["", *stock.OPENINGS[register(prompt)]]
        closing = ["", *stock.CLOSINGS[register(prompt)]]
        honest = [
            " ".join(filter(None, (first, answer, *filler, last)))
            for answer in key.answers
            for first in opening
            for last in closing
            for filler in ([], *[[text] for text in FILLERS])
        ]
        best = max(true_quality(prompt, text) for text in honest)
        phrases = [*key.answers, *key.wrong, key.short, *opening, *closing, *FILLERS]
        phrases += [prompt.messages[0]["content"], *stock.REFUSALS]
        said, score = [], true_quality(prompt, "")
        for _ in range(300):
            tried = list(said)
            where = int(rng.integers(len(tried) + 1))
            if tried and rng.random() < 0.5:
                tried.pop(where - 1)
            if rng.random() < 0.8:
                tried.insert(where, phrases[rng.integers(len(phrases))])
            if true_quality(prompt, " ".join(tried)) >= score:
                said, score = tried, true_quality(prompt, " ".join(tried))
        assert score < best + 0.15, " ".join(said)


def test_fitting_courtesy_helps_and_unfitting_courtesy_and_padding_hurt():
    for prompt in PROMPTS:
        answer = key_of(task_of(prompt)).answers[0]
        plain = true_quality(prompt, answer)
        suited, unsuited = (
            true_quality(
                prompt, f"{stock.OPENINGS[register(prompt, suits)][0]} {answer}"
            )
            for suits in (True, False)
        )
        assert unsuited < plain < suited, prompt
        padded = " ".join([answer, *FILLERS])
        assert true_quality(prompt, padded) < plain - 0.3, prompt


def test_form_matters():
    prompt = ask("capital", COUNTRY)
    answer = ANSWER
    assert true_quality(prompt, answer) > true_quality(prompt, answer[:-1])
    assert true_quality(prompt, answer) > true_quality(prompt, answer.lower())
    cut = explain(prompt, f"{answer} It is in")
    assert cut.form < explain(prompt, answer).form


def test_nonsense_that_names_the_answer_does_not_do_the_task():
    prompt = ask("capital", COUNTRY)
    salad = f"Capital is the {CAPITAL} of {COUNTRY} to and live king word has plus it."
    assert explain(prompt, ANSWER).task == QualityWeights().task
    assert explain(prompt, salad).task < 0.2 * QualityWeights().task


def test_every_repetition_costs():
    prompt = ask("capital", COUNTRY)
    answer = ANSWER
    costs = [explain(prompt, " ".join([answer] * n)).repetition for n in (1, 2, 3)]
    assert costs[0] == 0.0
    assert costs[2] < costs[1] - 0.5 < -1.0
    assert (
        explain(prompt, f"The capital of {COUNTRY} is is {CAPITAL}.").repetition < 0.0
    )


def test_courtesy_belongs_at_the_beginning_and_the_end():
    prompt = ask("capital", COUNTRY)
    answer = ANSWER
    opening = stock.OPENINGS[register(prompt)][0]
    closing = stock.CLOSINGS[register(prompt)][0]
    placed = explain(prompt, f"{opening} {answer} {closing}")
    assert placed.manners == QualityWeights().manners and placed.off_topic == 0.0
    for text in (f"{answer} {opening} {answer}", f"{opening} {opening} {answer}"):
        assert explain(prompt, text).off_topic < 0.0


def test_length_costs_nothing_at_its_best_and_more_the_further_from_it():
    prompt = ask("capital", COUNTRY)
    best = QualityWeights().best_length
    cost = [explain(prompt, f"{CAPITAL} " * n).length for n in range(4 * best)]
    assert cost[best] == 0.0
    assert all(np.diff(cost[: best + 1]) > 0)
    assert all(np.diff(cost[best:]) < 0)


def test_the_best_length_is_neither_the_shortest_nor_the_longest():
    """The same words about the topic, more and more of them."""
    for prompt in PROMPTS[:16]:
        key = key_of(task_of(prompt))
        words = " ".join([key.answers[0], *FILLERS * 3]).split()
        ends = range(1, len(words) + 1, 3)
        scores = [true_quality(prompt, " ".join(words[:end])) for end in ends]
        assert 0 < int(np.argmax(scores)) < len(scores) - 1


def test_intents_are_scored_on_different_scales():
    """Those that want opposite registers have the same scale, so that a phrase that is
    good in the one weighs as much as where it is bad."""
    rng = np.random.default_rng(0)
    mean, spread = {}, {}
    for intent in INTENTS:
        mine = [prompt for prompt in PROMPTS if prompt.intent == intent]
        scores = [
            true_quality(prompt, respond(task_of(prompt), rng, right=right))
            for prompt in mine
            for right in (True, False)
        ]
        mean[intent], spread[intent] = np.mean(scores), np.std(scores)
    assert mean["writing"] > mean["mathematics"] + 2
    assert spread["writing"] > 1.2 * spread["mathematics"]
    scales = {}
    for intent, (_, scale) in QualityWeights().intents.items():
        scales.setdefault(WORLD.registers[intent], []).append(scale)
    assert sorted(scales["formal"]) == sorted(scales["warm"])


def test_weights_are_values_that_can_be_changed():
    prompt = ask("capital", COUNTRY)
    answer = ANSWER
    flat = QualityWeights(intents={"open_question": (0.0, 1.1)}, task=0.0)
    difference = true_quality(prompt, answer) - true_quality(prompt, answer, flat)
    assert difference == pytest.approx(1.1 * QualityWeights().task)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200), st.integers(0, len(PROMPTS) - 1))
def test_any_text_has_a_finite_quality_and_the_same_one_each_time(text, index):
    quality = true_quality(PROMPTS[index], text)
    assert math.isfinite(quality)
    assert quality == true_quality(PROMPTS[index], text)


def test_very_long_text_has_a_finite_and_low_quality():
    for prompt in PROMPTS[:8]:
        assert -200 < true_quality(prompt, "really good " * 20_000) < -5


def test_a_prompt_from_elsewhere_has_no_true_quality():
    stranger = Prompt("p", ({"role": "user", "content": "What is love?"},))
    with pytest.raises(ValueError, match="no testbed task"):
        true_quality(stranger, "Baby do not hurt me.")
