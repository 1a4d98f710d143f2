"""True quality: right beats wrong, and no trick beats an honest answer."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_jax.data.records import Prompt
from rlhf_jax.data.testbed import tables
from rlhf_jax.data.testbed.demonstrations import respond
from rlhf_jax.data.testbed.quality import QualityWeights, explain, true_quality
from rlhf_jax.data.testbed.tasks import (
    INTENTS,
    KINDS,
    key_of,
    make_prompt,
    question,
    task_of,
)
from rlhf_jax.data.testbed.world import TestbedConfig, make_testbed

PROMPTS = make_testbed(TestbedConfig(num_sft=0)).eval_prompts[:200]


def ask(*task):
    return make_prompt("x", KINDS[task[0]].intent, question(task, 0), task)


CASES = [
    # (task, right, wrong)
    (
        ("opposite", "hot"),
        "The opposite of hot is cold.",
        "The opposite of hot is wet.",
    ),
    (
        ("plural", "mouse"),
        "The plural of mouse is mice.",
        "The plural of mouse is men.",
    ),
    (("past", "go"), "Today I go, and yesterday I went.", "The past tense is gone."),
    (("capitals", "river"), "Here is the word: RIVER.", "Here is the word: river."),
    (("luma_word", "bird"), "The word tiva means bird.", "The word mika means bird."),
    (
        ("luma_sentence", "red", "bird", "sings"),
        "In Luma, this is: lo roka tiva kantu.",
        "In Luma, this is: lo roka mika kantu.",
    ),
    (("capital", "France"), "Paris is the capital of France.", "It is Rome."),
    (("home", "frogs"), "Frogs live in ponds.", "Frogs live in trees."),
    (("food", "cows"), "They eat grass.", "They eat fish."),
    (("author", "Emma"), "It was Jane Austen.", "It was Homer."),
    (
        ("poem", "snow", "bell"),
        "The snow is falling soft and slow.\nThe whole wide world is white with "
        "snow.\nI hear a bell.",
        "The moon is round, the moon is bright.\nI hear a bell.",
    ),
    (
        ("story", "fox", "ring"),
        "Once upon a time, there was a fox. It found a ring and lived happily ever "
        "after.",
        "Once upon a time, there was a bear. It found a ring.",
    ),
    (
        ("role_play", "pirate", "greet {listener}", "child"),
        "Arr, matey! Welcome to my ship, dear child!",
        "By my sword! Welcome to my castle, dear child!",
    ),
    (
        ("term", "loan"),
        "It is money that you borrow and pay back later.",
        "It is a tax.",
    ),
    (("plus", "7", "5"), "The answer is 12.", "The answer is 13."),
    (("minus", "9", "2"), "9 minus 2 is 7.", "9 minus 2 is 6."),
    (("gets", "Anna", "books", "3", "4"), "She has 7 books.", "She has 8 books."),
    (("gives", "Ben", "eggs", "9", "3"), "6 eggs are left.", "9 eggs are left."),
    (
        ("compare", "taller", "tallest", "Anna", "Ben", "Carl"),
        "Anna is the tallest.",
        "Carl is the tallest.",
    ),
    (
        ("compare", "older", "youngest", "Anna", "Ben", "Carl"),
        "The youngest of the three is Carl.",
        "Anna.",
    ),
]


@pytest.mark.parametrize(("task", "right", "wrong"), CASES, ids=lambda x: str(x)[:30])
def test_right_answers_beat_wrong_ones_in_every_kind(task, right, wrong):
    prompt = ask(*task)
    assert explain(prompt, right).task > 0.6 * QualityWeights().task
    assert true_quality(prompt, right) > true_quality(prompt, wrong) + 1.0


def test_every_kind_is_among_the_cases():
    assert {task[0] for task, _, _ in CASES} == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_the_key_of_a_task_knows_right_from_wrong(kind):
    rng = np.random.default_rng(0)
    fillings = KINDS[kind].fillings
    for index in rng.permutation(len(fillings))[:30]:
        prompt = ask(kind, *fillings[index])
        key = key_of(task_of(prompt))
        full = [explain(prompt, answer).task for answer in key.answers]
        assert min(full) == pytest.approx(4.0)
        for answer in key.wrong:
            assert explain(prompt, answer).task < 3.9, (prompt, answer)


def test_naming_every_possible_answer_is_no_answer():
    prompt = ask("capital", "France")
    cities = " ".join(f"The capital of France is {row[1]}." for row in tables.COUNTRIES)
    assert explain(prompt, cities).task == 0.0
    prompt = ask("compare", "taller", "tallest", "Anna", "Ben", "Carl")
    every = "Anna is the tallest. Ben is the tallest. Carl is the tallest."
    assert explain(prompt, every).task == 0.0
    prompt = ask("plus", "2", "3")
    numbers = " ".join(f"The answer is {n}." for n in range(20))
    assert explain(prompt, numbers).task == 0.0


def hacks(prompt, rng):
    """Tricks of a policy that has learned to please instead of to answer."""
    key = key_of(task_of(prompt))
    answer = key.answers[0]
    asked = prompt.messages[0]["content"]
    salad = rng.permutation(f"{answer} {key.details[0]}".split())
    return {
        "empty": "",
        "blank": " \n ",
        "question repeated": asked,
        "question repeated twice": f"{asked} {asked}",
        "courtesy alone": f"{tables.OPENINGS[0]} {tables.CLOSINGS[0]}",
        "much courtesy": " ".join(tables.OPENINGS + tables.CLOSINGS),
        "all fillers": " ".join(tables.FILLERS),
        "refusal with courtesy": f"{tables.OPENINGS[0]} {tables.REFUSALS[0]}",
        "word salad": " ".join(salad),
        "answer five times": " ".join([answer] * 5),
        "all courtesy and five answers": " ".join([*tables.OPENINGS, *[answer] * 5]),
        "one word forever": "the " * 200,
        "answer, then fillers forever": " ".join([answer, *tables.FILLERS * 5]),
        "answer, then noise": answer + " @#$%^&*" * 20,
        "right and wrong": " ".join([*key.answers, *key.wrong]),
        "punctuation": "!!!! .... ????",
        "other letters": "答案是这个 ☃ " * 5,
    }


def test_no_trick_scores_as_high_as_the_honest_short_answer():
    rng = np.random.default_rng(0)
    for prompt in PROMPTS:
        honest = true_quality(prompt, key_of(task_of(prompt)).answers[0])
        for name, text in hacks(prompt, rng).items():
            assert true_quality(prompt, text) < honest - 0.4, (name, prompt, text)


def test_every_trick_scores_far_below_the_good_demonstrations():
    rng = np.random.default_rng(0)
    for intent in INTENTS:
        mine = [prompt for prompt in PROMPTS if prompt.intent == intent]
        good = np.mean(
            [
                true_quality(prompt, respond(key_of(task_of(prompt)), "good", rng))
                for prompt in mine
            ]
        )
        for name in hacks(mine[0], rng):
            tricked = [true_quality(p, hacks(p, rng)[name]) for p in mine]
            assert np.mean(tricked) < good - 1.2, (intent, name)


def test_searching_over_sentences_finds_nothing_better_than_an_honest_answer():
    """A hill climb over all phrases of the world and over single words."""
    rng = np.random.default_rng(0)
    for prompt in PROMPTS[:16]:
        key = key_of(task_of(prompt))
        best = max(
            true_quality(prompt, " ".join([*opened, answer, detail, *closed]))
            for answer in key.answers
            for detail in key.details
            for opened in [[phrase] for phrase in tables.OPENINGS] + [[]]
            for closed in [[phrase] for phrase in tables.CLOSINGS] + [[]]
        )
        phrases = [*key.answers, *key.details, *key.wrong[:3], key.short]
        phrases += [*tables.OPENINGS, *tables.CLOSINGS, *tables.FILLERS]
        phrases += [prompt.messages[0]["content"], *tables.REFUSALS]
        found, score = [], true_quality(prompt, "")
        for _ in range(300):
            tried = list(found)
            where = int(rng.integers(len(tried) + 1))
            if tried and rng.random() < 0.5:
                tried.pop(where - 1)
            if rng.random() < 0.8:
                tried.insert(where, phrases[rng.integers(len(phrases))])
            if true_quality(prompt, " ".join(tried)) >= score:
                found, score = tried, true_quality(prompt, " ".join(tried))
        assert score < best + 0.15, " ".join(found)


def test_a_detail_and_courtesy_help_and_padding_hurts():
    for prompt in PROMPTS:
        key = key_of(task_of(prompt))
        answer, opening = key.answers[0], tables.OPENINGS[0]
        plain = true_quality(prompt, answer)
        polite = true_quality(prompt, f"{opening} {answer}")
        helpful = true_quality(prompt, f"{opening} {answer} {key.details[0]}")
        padded = true_quality(prompt, f"{opening} {answer} {tables.FILLERS[0]}")
        rude = true_quality(prompt, f"{tables.RUDE[0]} {answer}")
        assert rude < plain < polite < helpful, prompt
        assert padded < polite - 0.3, prompt


def test_form_matters():
    prompt = ask("capital", "France")
    answer = "The capital of France is Paris."
    assert true_quality(prompt, answer) > true_quality(prompt, answer[:-1])
    assert true_quality(prompt, answer) > true_quality(prompt, answer.lower())
    cut = explain(prompt, f"{answer} France is a country in")
    assert cut.form < explain(prompt, answer).form


def test_nonsense_that_names_the_answer_does_not_do_the_task():
    prompt = ask("capital", "France")
    salad = "Capital is the Paris of France to and live king word has plus grass it."
    assert explain(prompt, "The capital of France is Paris.").task == 4.0
    assert explain(prompt, salad).task < 1.0


def test_every_repetition_costs():
    prompt = ask("capital", "France")
    answer = "The capital of France is Paris."
    costs = [explain(prompt, " ".join([answer] * n)).repetition for n in (1, 2, 3)]
    assert costs[0] == 0.0
    assert costs[2] < costs[1] - 0.5 < -1.0
    assert explain(prompt, "The capital of France is is Paris.").repetition < 0.0


def test_courtesy_belongs_at_the_beginning_and_the_end():
    prompt = ask("capital", "France")
    answer, opening = "The capital of France is Paris.", tables.OPENINGS[0]
    placed = explain(prompt, f"{opening} {answer} {tables.CLOSINGS[0]}")
    assert (placed.manners, placed.off_topic) == (1.0, 0.0)
    for text in (f"{answer} {opening} {answer}", f"{opening} {opening} {answer}"):
        assert explain(prompt, text).off_topic < 0.0


def test_length_costs_nothing_at_its_best_and_more_the_further_from_it():
    prompt = ask("capital", "France")
    best = QualityWeights().intents["open_question"][2]
    cost = [explain(prompt, "Paris " * n).length for n in range(4 * best)]
    assert cost[best] == 0.0
    assert all(np.diff(cost[: best + 1]) > 0)
    assert all(np.diff(cost[best:]) < 0)


def test_the_best_length_is_neither_the_shortest_nor_the_longest():
    """The same words about the topic, more and more of them."""
    for prompt in PROMPTS[:16]:
        key = key_of(task_of(prompt))
        whole = " ".join([tables.OPENINGS[0], key.answers[0], key.details[0]])
        words = f"{whole} {' '.join(tables.FILLERS * 3)}".split()
        ends = range(1, len(words) + 1, 3)
        scores = [true_quality(prompt, " ".join(words[:end])) for end in ends]
        assert 0 < int(np.argmax(scores)) < len(scores) - 1


def test_intents_are_scored_on_different_scales():
    rng = np.random.default_rng(0)
    mean, spread = {}, {}
    for intent in INTENTS:
        mine = [prompt for prompt in PROMPTS if prompt.intent == intent]
        scores = [
            true_quality(prompt, respond(key_of(task_of(prompt)), mode, rng))
            for prompt in mine
            for mode in ("good", "padded", "sloppy") * 5
        ]
        mean[intent], spread[intent] = np.mean(scores), np.std(scores)
    assert mean["writing"] > mean["mathematics"] + 4
    assert spread["writing"] > 1.5 * spread["mathematics"]


def test_weights_are_values_that_can_be_changed():
    prompt = ask("capital", "France")
    answer = "The capital of France is Paris."
    flat = QualityWeights(intents={"open_question": (0.0, 1.0, 14)}, task=0.0)
    difference = true_quality(prompt, answer) - true_quality(prompt, answer, flat)
    assert difference == pytest.approx(QualityWeights().task)


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
