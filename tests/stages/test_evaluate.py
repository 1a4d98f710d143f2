"""The stage with judges from outside: a chat service on this machine."""

import json

import pytest

from rlhf_jax.data.chat_client import ChatClient
from rlhf_jax.stages import evaluate
from tests.chat_service import said


@pytest.fixture
def judged(stage_config, model_folders, service, tmp_path, monkeypatch):
    """`judged("pairs")`: run the stage with the service as its judge."""
    monkeypatch.setattr(ChatClient, "_pause", lambda *args: None)

    def run(judge, **settings):
        models = "one={},two={}".format(*model_folders)
        config = stage_config("evaluate", models=models, judge=judge, num_prompts=8)
        config.service.update({"model": "m", "url": service.url} | settings)
        evaluate.run(config, str(tmp_path / "run"))
        return json.loads((tmp_path / "run" / "summary.json").read_text())

    return run


def prefer_longer(messages):
    shown = json.loads(messages[-1]["content"])
    longer = len(shown["first"]) > len(shown["second"])
    return "[[first]]" if longer else "[[second]]"


def test_pairs_by_a_chat_model(judged, service, tmp_path):
    def speak(messages):
        return "yes" if len(messages) == 1 else prefer_longer(messages)

    service.speak = speak
    summary = judged("pairs")
    row = summary["models"]["two"]
    versus = row["against_baseline"]
    assert versus["prompts"] == 8 and row["without_verdict"] == 0
    assert versus["win"] + versus["tie"] + versus["lose"] == pytest.approx(1)
    assert "quality" not in row
    lines = (tmp_path / "run" / "answers_two.jsonl").read_text().splitlines()
    assert {json.loads(line)["result"] for line in lines} <= {-1.0, 0.0, 1.0}


def test_the_limit_stops_and_a_higher_one_asks_only_the_rest(judged, service):
    service.speak = lambda messages: '{"overall": 5}'
    prices = {"prompt_price": 0.0, "response_price": 1000.0, "max_tokens": 64}
    # An answer costs 0.002 and could cost 0.064: some pass, not all.
    with pytest.raises(ValueError, match="raise the limit and start again"):
        judged("marks", spending_limit=0.08, workers=2, **prices)
    asked = len(service.requests)
    assert 1 < asked < 17
    summary = judged("marks", spending_limit=10.0, **prices)
    assert len(service.requests) == 17  # one to begin with, and 2 models x 8
    assert summary["models"]["one"]["quality"]["mean"] == 5.0
    assert summary["models"]["two"]["against_baseline"]["tie"] == 1.0


def test_verdicts_that_cannot_be_read_are_counted(judged, service, tmp_path):
    service.replies = [(200, said("yes")), (200, said("?")), (200, said("??"))]
    service.speak = lambda messages: '{"overall": 5}'
    summary = judged("marks", workers=1)
    assert summary["models"]["one"]["without_verdict"] == 2
    assert summary["models"]["two"]["against_baseline"]["prompts"] == 6
    lines = (tmp_path / "run" / "answers_one.jsonl").read_text().splitlines()
    assert [json.loads(line)["quality"] for line in lines[:3]] == [None, None, 5.0]


def test_a_judge_that_never_says_anything_is_one_clear_line(judged, service):
    with pytest.raises(ValueError, match="no verdict on any of 8"):
        judged("marks")


def test_a_judge_that_is_not_there_is_known_at_once(judged, tmp_path):
    with pytest.raises(ValueError, match=r"Cannot reach http://127.0.0.1:1/"):
        judged("marks", url="http://127.0.0.1:1/v1", max_retries=1)
    assert not list((tmp_path / "run").glob("answers_*"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"judge": "me"}, "judge='me' must be one of"),
        ({"judge": "pairs"}, "Set config.service.model"),
        ({"judge": "reward_model"}, "needs config.reward_model"),
        ({"models": ""}, "config.models is empty"),
        ({"models": "a=x,a=y"}, "two models are called 'a'"),
    ],
)
def test_a_mistake_is_named(stage_config, model_folders, tmp_path, fields, message):
    models = "one={},two={}".format(*model_folders)
    config = stage_config("evaluate", **({"models": models} | fields))
    with pytest.raises(ValueError, match=message):
        evaluate.run(config, str(tmp_path / "run"))
