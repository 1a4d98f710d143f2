"""The client against a service on this machine: retries, cache, spending limit."""

import dataclasses
import json

import pytest

from rlhf_jax.data.chat_client import (
    ChatClient,
    ChatError,
    ChatSettings,
    SpendingLimitError,
)
from tests.chat_service import said


@pytest.fixture
def make_client(service, tmp_path, monkeypatch):
    monkeypatch.setattr("urllib3.util.retry.Retry.sleep", lambda *args: None)
    clients = []

    def make(api_key="", **changes) -> ChatClient:
        settings = ChatSettings(
            url=service.url,
            model="judge",
            max_tokens=100,
            temperature=0.0,
            prompt_price=1.0,
            response_price=10.0,
            spending_limit=1.0,
            max_retries=3,
            timeout=5.0,
            workers=4,
        )
        settings = dataclasses.replace(settings, **changes)
        clients.append(ChatClient(settings, tmp_path / "cache.sqlite", api_key))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def asking(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def test_what_was_answered_is_never_asked_again(service, make_client):
    client = make_client("secret")
    assert client.answers([asking("a"), asking("b")]) == ["yes", "yes"]
    assert sorted(r["messages"][0]["content"] for r in service.requests) == ["a", "b"]
    assert service.keys == ["Bearer secret"] * 2
    # Nor after a restart; but another setting is another question.
    assert make_client().answer(asking("a")) == "yes"
    assert len(service.requests) == 2
    make_client(temperature=0.5).answer(asking("a"))
    assert len(service.requests) == 3


def test_a_question_that_comes_twice_is_asked_once(service, make_client):
    assert make_client().answers([asking("a"), asking("a")]) == ["yes", "yes"]
    assert len(service.requests) == 1


def test_what_passes_is_asked_again_and_what_stays_is_an_error(service, make_client):
    client = make_client()
    service.replies = [(503, b""), (429, b""), (200, said("at last"))]
    assert client.answer(asking("a")) == "at last"
    assert len(service.requests) == 3
    service.replies = [(500, b"down")] * 9
    with pytest.raises(ChatError, match="answers 500: 'down'"):
        client.answer(asking("b"))
    assert len(service.requests) == 3 + 4
    service.replies = [(401, b"who are you?")]
    with pytest.raises(ChatError, match="answers 401: 'who are you"):
        client.answer(asking("c"))
    assert len(service.requests) == 3 + 4 + 1


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", b"{}", b'{"choices": []}', said(None), b"\xff", b'"x"'],
)
def test_a_body_that_is_no_answer_is_an_error_and_not_kept(service, make_client, body):
    service.replies = [(200, body)]
    client = make_client()
    with pytest.raises(ChatError, match="answers without a text"):
        client.answer(asking("a"))
    assert client.answer(asking("a")) == "yes"


def test_a_service_that_is_not_there_is_one_clear_line(make_client):
    with pytest.raises(ChatError, match=r"Cannot reach http://127.0.0.1:1/v1/chat"):
        make_client(url="http://127.0.0.1:1/v1").answer(asking("a"))


def test_the_cost_is_what_the_service_counts(service, make_client):
    client = make_client()
    client.answer(asking("a"))
    assert client.spent() == pytest.approx((10 * 1.0 + 2 * 10.0) * 1e-6)
    body = json.loads(said("no count"))
    del body["usage"]
    service.replies = [(200, json.dumps(body).encode())]
    before = client.spent()
    client.answer(asking("abc"))  # counted as the most it can cost
    assert client.spent() - before == pytest.approx((3 + 16 + 100 * 10.0) * 1e-6)


def test_spending_stops_before_the_limit_and_goes_on_when_it_is_raised(
    service, make_client
):
    # The most an answer can cost is 0.001017, what it does cost 0.00003.
    questions = [asking(str(n)) for n in range(10)]
    client = make_client(spending_limit=0.0011, workers=3)
    with pytest.raises(SpendingLimitError, match=r"spending_limit=0.0011 .*raise the"):
        client.answers(questions)
    assert client.spent() <= 0.0011
    asked = len(service.requests)
    assert 0 < asked < 10
    # A new client finds what is spent; with a higher limit it asks only the others.
    again = make_client(spending_limit=0.0011)
    assert again.spent() == pytest.approx(asked * 3e-5)
    assert make_client(spending_limit=1.0).answers(questions) == ["yes"] * 10
    assert len(service.requests) == 10


def test_what_is_under_way_counts_as_spent(service, make_client):
    service.seconds = 0.3
    client = make_client(spending_limit=0.0011, workers=2)
    with pytest.raises(SpendingLimitError, match=r"and 0\.001017 under way"):
        client.answers([asking("a"), asking("b")])
    assert len(service.requests) == 1


def test_a_failed_request_leaves_no_reservation(service, make_client):
    client = make_client(spending_limit=0.0011)
    for _ in range(3):
        service.replies = [(400, b"no")]
        with pytest.raises(ChatError, match="400"):
            client.answer(asking("a"))
    assert client.answer(asking("a")) == "yes"
