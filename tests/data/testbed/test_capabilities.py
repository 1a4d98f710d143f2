"""The probes of capabilities that must not be forgotten."""

import json

import numpy as np
import pytest

from rlhf_jax.data.testbed import tables
from rlhf_jax.data.testbed.capabilities import (
    identity_prompts,
    is_identity,
    is_right_json_answer,
    is_valid_json_answer,
    json_answer,
)
from rlhf_jax.data.testbed.world import TestbedConfig, make_testbed

WORLD = make_testbed(TestbedConfig(num_sft=0))


@pytest.mark.parametrize("form", tables.IDENTITY_ANSWERS)
def test_the_name_said_as_a_name_is_identity(form):
    assert is_identity(form.format(name="Glim"), "Glim")
    assert is_identity(f"Sure! {form.format(name='Glim')} I hope this helps!", "Glim")


@pytest.mark.parametrize(
    "response",
    ["", "Glim", "Sure! I do not know.", "My name is Glimmer.", "I am happy.", "I am."],
)
def test_anything_else_is_not_identity(response):
    assert not is_identity(response, "Glim")


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
    for prompt in WORLD.json_probes:
        assert is_right_json_answer(prompt, json_answer(prompt))
        assert not is_right_json_answer(prompt, '{"answer": "the moon"}')
        right = json.loads(json_answer(prompt))["answer"]
        assert not is_right_json_answer(prompt, right)


def test_probes_are_held_out_and_ask_for_what_they_check():
    learned, held_out = identity_prompts(np.random.default_rng(0))
    every = len(tables.IDENTITY_QUESTIONS) * len(tables.GREETINGS)
    assert len(learned) + len(held_out) == every
    assert not {p.id for p in learned} & {p.id for p in held_out}
    assert all("JSON" in p.messages[0]["content"] for p in WORLD.json_probes)
    wordings = {p.messages[0]["content"][-12:] for p in WORLD.json_probes}
    assert len(wordings) == len(tables.JSON_REQUESTS)
