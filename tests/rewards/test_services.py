"""Rewards that ask a service: what is sent, what comes back, and what goes wrong."""

import json

import numpy as np
import pytest

from configs import ppo as config_file
from rlhf_jax.data.records import Prompt, Response
from rlhf_jax.rewards.http import http
from rlhf_jax.rewards.judge import judge

PROMPTS = [
    Prompt(
        id=f"q{i}",
        messages=({"role": "user", "content": f"{i} + {i}?"},),
        reference=str(2 * i),
        extra={"level": i},
    )
    for i in range(3)
]
RESPONSES = [
    Response("0", True, [7]),
    Response("2", False, [8]),
    Response("five", True, [9, 9]),
]


@pytest.fixture
def by_http(service):
    return http(service.url, timeout=5.0, max_retries=1)


def answer(content) -> tuple[int, bytes]:
    return 200, json.dumps(content).encode()


def test_a_batch_goes_in_and_scores_come_out(by_http, service):
    service.replies = [answer({"scores": [1, 0.5, -2]})]
    assert by_http(PROMPTS, RESPONSES) == [1, 0.5, -2]
    (sent,) = service.requests
    assert sent["prompts"][1] == {
        "id": "q1",
        "messages": [{"role": "user", "content": "1 + 1?"}],
        "intent": "",
        "reference": "2",
        "task": None,
        "level": 1,
    }
    assert sent["responses"][1] == {"text": "2", "ended": False, "tokens": [8]}


def test_a_failure_that_passes_is_asked_again(by_http, service):
    retry_at_once = {"Retry-After": "0"}
    service.replies = [(503, b"busy", retry_at_once), answer({"scores": [1, 2, 3]})]
    assert by_http(PROMPTS, RESPONSES) == [1, 2, 3]
    assert len(service.requests) == 2


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ((400, b"no such model"), "answers 400: 'no such model'"),
        ((200, b"[1, 2, 3]"), r'an answer that is not {"scores": \[...\]}'),
        ((200, b"<html>"), r'an answer that is not {"scores": \[...\]}: \'<html>\''),
        ((200, b'{"score": [1]}'), r'an answer that is not {"scores": \[...\]}'),
    ],
)
def test_an_answer_that_is_none_is_told_with_the_address(reply, said, by_http, service):
    service.replies = [reply]
    with pytest.raises(ValueError, match=f"{service.url}.*{said}"):
        by_http(PROMPTS, RESPONSES)
    assert len(service.requests) == 1


def test_the_marks_of_a_judge_are_rewards_and_are_kept(service, tmp_path):
    def speak(messages):
        if len(messages) == 1:  # the question that opens a client
            return "yes"
        judged = json.loads(messages[1]["content"])
        right = judged["answer"] == judged["reference"]
        return json.dumps({"overall": 8 if right else 3})

    service.speak = speak
    settings = config_file.get_config("tiny").reward_judge
    settings.update(model="judge", url=service.url)
    ask = judge(settings, tmp_path / "judge.sqlite")
    np.testing.assert_allclose(ask(PROMPTS, RESPONSES), [0.8, 0.8, 0.3])
    asked = len(service.requests)
    again = judge(settings, tmp_path / "judge.sqlite")
    np.testing.assert_allclose(again(PROMPTS, RESPONSES), [0.8, 0.8, 0.3])
    # No answered question is asked again, except the one that opens a client.
    assert len(service.requests) - asked <= 1


def test_a_verdict_without_a_mark_is_no_reward(service, tmp_path):
    settings = config_file.get_config("tiny").reward_judge
    settings.update(model="judge", url=service.url)
    ask = judge(settings, tmp_path / "judge.sqlite")
    assert np.isnan(ask(PROMPTS[:1], RESPONSES[:1])).all()
