"""The built-in functions on cases by hand."""

import json

import numpy as np
import pytest
from scipy.stats import kstest

from rlhf_jax.data.records import Prompt, Response
from rlhf_jax.rewards.language import language
from rlhf_jax.rewards.length_penalty import length_penalty
from rlhf_jax.rewards.matches import exact_match, normalised_match
from rlhf_jax.rewards.multiple_choice import multiple_choice
from rlhf_jax.rewards.prompt_offset import prompt_offset
from rlhf_jax.rewards.regular_expression import regular_expression
from rlhf_jax.rewards.repetition_penalty import repetition_penalty
from rlhf_jax.rewards.right_number import right_number
from rlhf_jax.rewards.valid_json import valid_json
from tests.rewards.parts import prompt, reward_of

NUMBERS = [
    # response, reference, reward
    ("It is 8.", "8", 1),
    ("8", "8.0", 1),
    ("8.50 dollars", "17/2", 1),
    ("", "8", 0),
    ("no number", "8", 0),
    ("5 plus 3 is 8.", "8", 1),  # the last number
    ("8 is 5 plus 3.", "8", 0),
    ("The answer is 8. To check, 8 minus 3 is 5.", "8", 1),
    ("The answer is 7. To check, 8 minus 3 is 8.", "8", 0),
    ("Answer: 3 + 5 = 8", "8", 1),
    ("answer is x = 8, since 1 = 1. So 9", "1", 1),
    (r"So \boxed{8}, not 9.", "8", 1),
    (r"\boxed{7} or rather \boxed{8}", "8", 1),
    (r"\boxed{x = \frac{1}{2}} and 3", "0.5", 1),
    (r"\boxed{8", "8", 1),
    ("She has 48/2 = 24 clips.\n#### 72", "#### 72", 1),
    ("1,000", "1000", 1),
    ("1,234,567.5", "1234567.5", 1),
    ("12,34", "1234", 0),
    (r"1{,}000", "1000", 1),
    ("1\u202f000", "1000", 1),
    ("-3", "-3", 1),
    ("3", "-3", 0),
    ("\u22123", "-3", 1),
    ("x=-3", "-3", 1),
    ("5-3", "3", 1),  # a minus between numbers is no sign
    ("(-7)", "-7", 1),
    ("+7", "7", 1),
    ("1/2", "0.5", 1),
    ("2/4", "1/2", 1),
    ("1 1/2", "1.5", 1),
    ("\u00bd", "0.5", 1),
    ("3\u00bd", "3.5", 1),
    (r"\dfrac{3}{4}", "0.75", 1),
    ("1/0", "1", 0),
    ("50%", "0.5", 1),
    ("50 per cent", "50%", 1),
    ("50%", "50", 0),
    ("\u767e\u5206\u4e4b50", "1/2", 1),
    ("\uff18", "8", 1),  # full width
    ("\u0668", "8", 1),  # Arabic
    ("10\u00b2", "102", 0),  # a superscript is no digit
    ("\u7b54\u6848\u662f\uff1a8\u3002\u9a8c\u7b97\uff1a5+3", "8", 1),
    ("1e3", "1000", 1),
    ("1e999999999", "1", 0),
    ("9" * 10_000, "9", 0),
    ("$1,000.00", "1000", 1),
    (".5", "0.5", 1),
    ("3.14.", "3.14", 1),
]


@pytest.mark.parametrize(("response", "reference", "reward"), NUMBERS)
def test_right_number(response, reference, reward):
    assert reward_of(right_number, response, reference) == reward


@pytest.mark.parametrize(
    ("response", "reference", "exact", "normalised"),
    [
        ("Paris", "Paris", 1, 1),
        (" Paris\n", "Paris", 1, 1),
        ("paris.", "Paris", 0, 1),
        ("The  Paris!", "paris", 0, 1),
        ("Theparis", "paris", 0, 0),
        ("", "Paris", 0, 0),
        ("\uff30aris\u3002", "Paris", 0, 1),
        ("stra\u00dfe", "STRASSE", 0, 1),
        ("\u5317\u4eac\uff01", "\u5317\u4eac", 0, 1),
        ("well-known", "well known", 0, 1),
    ],
)
def test_matches(response, reference, exact, normalised):
    assert reward_of(exact_match, response, reference) == exact
    assert reward_of(normalised_match, response, reference) == normalised


@pytest.mark.parametrize(
    ("response", "reference", "reward"),
    [
        ("B", "B", 1),
        ("b", "B", 0),  # a lone letter in lower case may be a word
        ("(B)", "b", 1),
        ("B. It is blue.", "B", 1),
        ("The answer is (C), not B.", "C", 1),
        ("The answer is b.", "B", 1),
        ("The answer is a dog", "A", 0),
        (r"\boxed{D}", "D", 1),
        ("A dog and I think B", "B", 1),
        ("A dog and I", "A", 0),
        ("Not (A) but (C)", "C", 1),
        ("\u7b54\u6848\uff1aC", "C", 1),
        ("\uff22", "B", 1),
        ("", "B", 0),
        ("Bach", "B", 0),
    ],
)
def test_multiple_choice(response, reference, reward):
    assert reward_of(multiple_choice, response, reference) == reward


def test_regular_expression_takes_the_prompts_own_pattern_first():
    function = regular_expression(r"^\d+$")
    assert reward_of(function, "42") == 1
    assert reward_of(function, "42.") == 0
    assert reward_of(function, "42.", pattern=r"\p{P}") == 1
    assert reward_of(function, "", pattern="^$") == 1


def test_a_search_ends_in_time(monkeypatch):
    monkeypatch.setattr("rlhf_jax.rewards.regular_expression.SECONDS", 0.05)
    with pytest.raises(ValueError, match=r"takes more than 0.05 seconds"):
        reward_of(regular_expression("(a|aa)+$"), "a" * 200 + "b")


@pytest.mark.parametrize(
    ("response", "schema", "reward"),
    [
        ('{"a": 1}', True, 1),
        ('```json\n{"a": 1}\n```', True, 1),
        ('Here: {"a": 1}', True, 0),
        ("", True, 0),
        ("NaN", True, 0),
        ("[" * 100_000, True, 0),
        ('{"a": "\u5317"}', {"properties": {"a": {"type": "string"}}}, 1),
        ('{"a": 1}', {"properties": {"a": {"type": "string"}}}, 0),
        ("3", {"type": "integer", "minimum": 4}, 0),
    ],
)
def test_valid_json(response, schema, reward):
    assert reward_of(valid_json, response, schema=schema) == reward


def test_a_schema_is_never_fetched():
    schema = {"$ref": "http://127.0.0.1:9/schema.json"}
    with pytest.raises(Exception, match=r"[Uu]nresolvable"):
        reward_of(valid_json, "1", schema=schema)


@pytest.mark.parametrize(
    ("count", "ended", "reward"),
    [
        (1, True, 0),
        (16, True, 0),
        (17, True, -0.25),
        (20, True, -1),
        (21, True, -1),
        (3, False, -1),
    ],
)
def test_length_penalty_is_that_of_dapo(count, ended, reward):
    response = Response("x", ended, [5] * count)
    assert reward_of(length_penalty(20, 4), response) == reward


@pytest.mark.parametrize(
    ("tokens", "reward"),
    [
        ([1], 0),
        ([1, 2], 0),
        ([1, 1, 1], -1 / 2),  # (1, 1) twice
        ([1, 2, 3, 4], 0),
        ([1, 2, 1, 2, 1], -1 / 2),  # (1, 2), (2, 1), each twice
    ],
)
def test_repetition_penalty(tokens, reward):
    response = Response("x", True, tokens)
    assert reward_of(repetition_penalty(2), response) == pytest.approx(reward)


def test_the_prompts_offset_is_normal_and_the_same_for_all_responses():
    prompts = [
        Prompt(str(i % 7), ({"role": "user", "content": f"question {i}"},))
        for i in range(1000)
    ]
    one, other = (
        np.array(prompt_offset()(prompts, [Response(text)] * len(prompts)))
        for text in ("yes", "no")
    )
    np.testing.assert_array_equal(one, other)
    assert kstest(one, "norm").pvalue > 0.05
    assert len(set(one)) == len(one)


@pytest.mark.parametrize(
    ("text", "code", "reward"),
    [
        ("The quick brown fox jumps over the lazy dog again.", "en", 1),
        ("The quick brown fox jumps over the lazy dog again.", "fr", 0),
        ("\u4eca\u5929\u5929\u6c14\u5f88\u597d\u3002", "zh", 1),
        ("\u4eca\u5929\u5929\u6c14\u5f88\u597d\u3002", "en", 0),
        ("42.", "en", 1),
        ("", "en", 1),
    ],
)
def test_language(text, code, reward):
    assert reward_of(language(code), text) == reward
    assert reward_of(language("de"), text, language=code) == reward


@pytest.mark.parametrize(
    ("function", "extra", "message"),
    [
        (right_number, {}, "'q1' has no reference, which right_number"),
        (right_number, {"reference": "none"}, "'none', which holds no number"),
        (exact_match, {}, "no reference"),
        (normalised_match, {"reference": "  "}, "no reference"),
        (multiple_choice, {"reference": "?"}, "names no letter"),
        (regular_expression(""), {}, "no pattern"),
        (regular_expression(""), {"pattern": 3}, "no pattern"),
        (regular_expression("("), {}, "'q1': pattern"),
        (valid_json, {"schema": {"type": 3}}, "a schema that is none"),
        (valid_json, {"schema": "x"}, "a schema that is none"),
        (language(""), {}, "no language"),
    ],
)
def test_a_prompt_without_what_a_function_reads_is_named(function, extra, message):
    with pytest.raises(ValueError, match=message):
        function([prompt(**extra)], [Response("", True, [0])])


def test_a_batch_gives_float32_in_order():
    texts = ["8", "9", "It is 8"]
    responses = [Response(text, True, [1]) for text in texts]
    values = right_number([prompt("8")] * 3, responses)
    assert values.dtype == np.float32
    assert json.dumps(values.tolist()) == "[1.0, 0.0, 1.0]"
