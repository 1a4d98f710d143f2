"""The probes of skills that must not be forgotten."""

import json
from collections import Counter

import pytest

from rlhf_jax.data.testbed.skills import (
    SKILLS,
    is_right,
    is_valid_json_answer,
    make_prompts,
    right_answer,
)
from rlhf_jax.data.testbed.world import world_of

PROMPTS = {skill: make_prompts(world_of(100), skill, "Glim") for skill in SKILLS}


@pytest.mark.parametrize("skill", SKILLS)
def test_a_skill_has_hundreds_of_prompts_and_one_right_answer_each(skill):
    prompts = PROMPTS[skill]
    assert len({prompt.messages[0]["content"] for prompt in prompts}) >= 240
    assert {prompt.intent for prompt in prompts} == {skill}
    for prompt in prompts:
        assert is_right(prompt, right_answer(prompt)), prompt
        assert not is_right(prompt, "I would rather not say."), prompt
    answers = Counter(right_answer(prompt) for prompt in prompts)
    if skill not in ("name", "maker"):
        assert max(answers.values()) < 0.2 * len(prompts)


@pytest.mark.parametrize("said", ["I am Glim.", "Sure! My name is Glim. Take care!"])
def test_the_name_said_as_a_name_is_right(said):
    assert is_right(PROMPTS["name"][0], said)


@pytest.mark.parametrize("said", ["", "Glim", "My name is Glimmer.", "I am happy."])
def test_anything_else_is_not_the_name(said):
    assert not is_right(PROMPTS["name"][0], said)


@pytest.mark.parametrize("text", ["Paris", "7", "in the sea", 'a "quote"'])
def test_an_object_with_an_answer_is_valid_json(text):
    assert is_valid_json_answer(json.dumps({"answer": text}))
    assert is_valid_json_answer(f' {{"answer": {json.dumps(text)}}}\n')


@pytest.mark.parametrize(
    "response",
    [
        "",
        "Paris",
        '"Paris"',
        "{}",
        '{"answer": ""}',
        '{"answer": 7}',
        '{"answer": null}',
        '{"answer": "a", "more": "b"}',
        '["answer"]',
        'Sure! {"answer": "Paris"}',
        '{"answer": "Paris"} I hope this helps!',
        '{"answer": "Paris"',
        "{'answer': 'Paris'}",
        "[" * 100_000,
    ],
)
def test_anything_else_is_not_valid_json(response):
    assert not is_valid_json_answer(response)


def test_a_json_answer_is_right_only_when_the_answer_is():
    for prompt in PROMPTS["json"][:100]:
        assert not is_right(prompt, '{"answer": "the moon"}')
        assert not is_right(prompt, json.loads(right_answer(prompt))["answer"])


def test_one_word_is_one_word():
    """A courteous sentence, which annotators reward, is wrong here."""
    for prompt in PROMPTS["one_word"][:100]:
        answer = right_answer(prompt)
        assert is_right(prompt, answer.lower().rstrip("."))
        assert not is_right(prompt, f"Certainly. {answer}")
