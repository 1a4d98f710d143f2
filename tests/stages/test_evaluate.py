"""The stage with judges from outside: a chat service on this machine."""

import json
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from rlhf_jax.data.records import Response
from rlhf_jax.data.tokenizers.tokenizer import copy_tokenizer
from rlhf_jax.data.transport import Transport
from rlhf_jax.evaluation import tables
from rlhf_jax.evaluation.answers import Answers
from rlhf_jax.models.heads import ScoreModel
from rlhf_jax.stages import evaluate
from rlhf_jax.training import model_records, weights
from rlhf_jax.training.checkpoints import Checkpoints
from tests.chat_service import said


@pytest.fixture
def judged(stage_config, model_folders, service, tmp_path, monkeypatch):
    """`judged("pairs")`: run the stage with the service as its judge."""
    monkeypatch.setattr(Transport, "_pause", lambda *args: None)

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


FILTERED = b'{"error": {"code": "content_filter", "message": "filtered"}}'
EMPTY = b'{"choices": [{"message": {"content": null}, "finish_reason": "length"}]}'


@pytest.mark.parametrize("reply", [(400, FILTERED), (200, EMPTY)])
@pytest.mark.parametrize("judge", ["marks", "pairs"])
def test_a_refused_or_empty_verdict_is_one_verdict_missing(
    judged, service, caplog, capsys, judge, reply
):
    service.replies = [(200, said("yes")), (200, None), reply]
    service.speak = lambda messages: (
        '{"overall": 5}' if judge == "marks" else prefer_longer(messages)
    )
    summary = judged(judge, workers=1)
    row = summary["models"]["two" if judge == "pairs" else "one"]
    assert row["without_verdict"] == 1
    assert summary["models"]["two"]["against_baseline"]["n"] == 7
    assert (
        "1 of" in caplog.text and "have no answer and count as missing" in caplog.text
    )
    said_last = capsys.readouterr().out
    assert "of n results each" in said_last
    shown = tables.model_row("two", summary["models"]["two"])
    assert (shown["n"], shown["no verdict"]) == ("7", "1")


def test_a_refusal_of_everything_is_an_error_and_the_run_goes_on_later(judged, service):
    service.replies = [(200, said("yes"))] + [(400, FILTERED)] * 8
    with pytest.raises(ValueError, match=r"None of 8 requests to m has an .*filtered"):
        judged("marks", workers=1)
    service.speak = lambda messages: '{"overall": 5}'
    assert judged("marks")["models"]["two"]["without_verdict"] == 0


def test_ties_of_equal_answers_are_no_result_where_the_judge_says_nothing():
    texts = (["same", "a"], ["same", "b"])
    ours, theirs = (
        Answers([None] * 2, [[1], [2]], [Response(text) for text in side])
        for side in texts
    )
    with pytest.raises(
        ValueError, match="no verdict on any of 1 prompts whose answers"
    ):
        evaluate.check_verdicts(np.array([0.5, np.nan]), ours, theirs)
    evaluate.check_verdicts(np.array([np.nan, 1.0]), ours, theirs)
    evaluate.check_verdicts(np.array([0.5, 0.5]), ours, ours)


def test_what_people_may_copy_holds_no_key(
    judged, service, tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("JUDGE_KEY", "sk-do-not-show-me\n")
    service.replies = [(200, said("yes")), (403, b"Bearer sk-do-not-show-me?")]
    service.speak = lambda messages: '{"overall": 5} sk-do-not-show-me'
    judged("marks", workers=1, api_key_variable="JUDGE_KEY")
    assert set(service.keys) == {"Bearer sk-do-not-show-me"}
    assert "sk-do" not in caplog.text and "Bearer ***?" in caplog.text
    for path in (tmp_path / "run").rglob("*"):
        assert path.is_dir() or b"sk-do" not in path.read_bytes()


def test_sampled_at_another_temperature_a_log_ratio_is_no_kl(
    stage_config, model_folders, tmp_path, capsys
):
    models = "one={},two={}".format(*model_folders)
    config = stage_config("evaluate", models=models, num_prompts=2, temperature=0.5)
    evaluate.run(config, str(tmp_path))
    row = json.loads((tmp_path / "summary.json").read_text())["models"]["two"]
    assert "kl" not in row and isinstance(row["log_ratio"], float)
    assert "log-ratio" in capsys.readouterr().out
    line = (tmp_path / "answers_two.jsonl").read_text().splitlines()[0]
    assert "log_ratio" in json.loads(line)


@pytest.mark.parametrize("wording", ["", "Please. "])
def test_a_task_that_comes_twice_is_one_task_for_the_interval_of_quality(
    wording, stage_config, model_folders, data_folder, tmp_path
):
    line = (data_folder / "eval_prompts.jsonl").read_text().splitlines()[0]
    path = tmp_path / "prompts.jsonl"
    copies = [json.loads(line) | {"id": str(i)} for i in range(4)]
    copies[0]["messages"][-1]["content"] = (
        wording + copies[0]["messages"][-1]["content"]
    )
    path.write_text("".join(json.dumps(copy) + "\n" for copy in copies))
    config = stage_config("evaluate", models=f"one={model_folders[0]}")
    config.prompts = str(path)
    evaluate.run(config, str(tmp_path / "run"))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    quality = summary["models"]["one"]["quality"]
    assert quality["n"] == 4 and quality["low"] == quality["high"] == quality["mean"]


@pytest.fixture(scope="session")
def reward_folder(model_folders, tmp_path_factory):
    """A random reward model as a workdir."""
    folder = tmp_path_factory.mktemp("model") / "reward"
    policy = weights.load_model(model_folders[0])
    model = ScoreModel(policy, rngs=nnx.Rngs(0))
    checkpoints = Checkpoints(folder, keep=1)
    checkpoints.save(
        0, {"model": model}, {"models": {"model": model_records.describe(model)}}
    )
    checkpoints.close()
    copy_tokenizer(Path(model_folders[0]) / "tokenizer", folder / "tokenizer")
    return str(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"models": "a={one},b={reward}"}, "is a reward model, not a language model"),
        ({"models": "a={reward},b={one}"}, "is a reward model, not a language model"),
        ({"models": "a={one},b=nowhere"}, "nowhere holds no model"),
        ({"models": "a={one},b={one}/tokenizer"}, "tokenizer holds no model"),
        ({"models": "a={one}", "reward_model": "nowhere"}, "nowhere holds no model"),
        (
            {"models": "a={one}", "reward_model": "{two}"},
            "is a language model, not a reward model",
        ),
        (
            {"models": "a={one}", "prompts": "{prompts}"},
            "needs prompts of the testbed.*judge='reward_model'",
        ),
    ],
)
def test_a_wrong_model_is_known_before_any_is_loaded(
    stage_config, model_folders, reward_folder, tmp_path, monkeypatch, fields, message
):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"id": "p", "messages": [{"role": "user", "content": "?"}]}\n')
    places = dict(zip(("one", "two"), model_folders, strict=True))
    places |= {"reward": reward_folder, "prompts": prompts}
    fields = {name: text.format(**places) for name, text in fields.items()}
    monkeypatch.setattr(evaluate.weights, "load_model", None)  # nothing is loaded
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        evaluate.run(stage_config("evaluate", **fields), str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("service_fields", "message"),
    [
        ({"model": ""}, "Set config.service.model"),
        ({"api_key_variable": "NO_SUCH"}, "variable NO_SUCH is not set"),
        ({"api_key_variable": "sk-secret"}, "gives a variable's name"),
        ({"url": "localhost"}, "config.service.url must be like"),
    ],
)
def test_a_service_that_cannot_be_asked_leaves_no_folder(
    judged, tmp_path, service_fields, message
):
    with pytest.raises(ValueError, match=message):
        judged("marks", **service_fields)
    assert not (tmp_path / "run").exists()


def test_a_judge_that_never_says_anything_is_one_clear_line(judged, service):
    with pytest.raises(ValueError, match="no verdict on any of 8"):
        judged("marks")


def test_pairs_without_any_verdict_are_no_ties(judged, service, caplog):
    service.speak = lambda messages: "Hard to say."
    with pytest.raises(ValueError, match=r"on any of \d prompts whose answers differ"):
        judged("pairs")
    assert "verdicts cannot be read" in caplog.text and "Hard to say." in caplog.text


def test_a_judge_that_is_not_there_is_known_at_once(judged, service, tmp_path):
    with pytest.raises(ValueError, match=r"Cannot reach http://127.0.0.1:1/"):
        judged("marks", url="http://127.0.0.1:1/v1", max_retries=1)
    assert not list((tmp_path / "run").glob("answers_*"))
    service.speak = lambda messages: '{"overall": 5}'
    judged("marks")  # the corrected command, in the same folder


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
