"""The benchmark from questions to numbers, marked by a service on this machine."""

import json

import pytest

from configs import alignbench as config_file
from rlhf_jax.evaluation.alignbench import CATEGORIES
from rlhf_jax.stages import alignbench
from tests.chat_service import said


@pytest.fixture
def bench(model_folders, service, tmp_path):
    """`bench(judge="none")`: run the stage on a question a category; its workdir."""
    questions = [
        {
            "question_id": i,
            "category": name,
            "subcategory": "",
            "question": "请" * (300 if i == 9 else i + 1),
            "reference": "好",
        }
        for i, name in enumerate([*CATEGORIES, CATEGORIES[0], CATEGORIES[1]])
    ]
    path = tmp_path / "questions.jsonl"
    lines = [json.dumps(question, ensure_ascii=False) + "\n" for question in questions]
    path.write_text("".join(lines), encoding="utf-8")

    def run(**fields):
        config = config_file.get_config("tiny")
        config.update(policy=model_folders[0], questions=str(path), model_name="m")
        config.update(batch_size=8, max_response_tokens=4)
        config.service.update(model="judge", url=service.url)
        config.update(fields)
        alignbench.run(config, str(tmp_path / "run"))
        return tmp_path / "run"

    return run


def lines_of(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_answers_are_marked_and_aggregated(bench, service, capsys):
    def speak(messages):
        if len(messages) == 1:
            return "yes"
        assert json.loads(messages[1]["content"])["reference"] == "好"
        asked = messages[0]["content"]
        mark = 3 if "逻辑连贯性" in asked and "创造性" not in asked else 6
        return f"不错。{{'事实正确性': 5, '综合得分': {mark}}}"

    service.speak = speak
    folder = bench()
    found = json.loads((folder / "summary.json").read_text())
    # Maths and logic are marked 3, the rest 6; question 9 is longer than the limit.
    assert found["overall"] == 4.5
    assert found["too_long"] == 1 and found["without_verdict"] == 0
    answers, judged = (
        lines_of(folder / kind / "m.jsonl") for kind in ("model_answer", "judgment")
    )
    assert [x["question_id"] for x in answers] == list(range(9))
    assert {x["score"] for x in judged} == {3.0, 6.0}
    assert "m: 4.50" in capsys.readouterr().out
    assert "| m | 4.50 | 3.00 |" in (folder / "result.md").read_text("utf-8")


def test_verdicts_without_a_mark_are_counted_and_kept_out(bench, service):
    service.speak = lambda messages: (
        "{'综合得分': 7}" if "逻辑连贯性" not in messages[0]["content"] else "嗯"
    )
    folder = bench()
    found = json.loads((folder / "summary.json").read_text())
    assert found["overall"] is None and found["groups"]["中文推理"] is None
    assert found["without_verdict"] == 5  # maths twice, logic, writing, role play
    assert len(lines_of(folder / "judgment" / "m.jsonl")) == 4


def test_a_refused_verdict_is_one_verdict_missing(bench, service, capsys, caplog):
    service.replies = [(200, said("yes")), (400, b"filtered"), (200, said(None))]
    service.speak = lambda messages: "{'综合得分': 7}"
    folder = bench()
    found = json.loads((folder / "summary.json").read_text())
    assert found["without_verdict"] == 2
    assert len(lines_of(folder / "judgment" / "m.jsonl")) == 7
    assert "2 of 9 requests to judge have no answer" in caplog.text
    assert "7 questions" in capsys.readouterr().out


def test_a_refusal_of_everything_is_an_error(bench, service):
    service.replies = [(200, said("yes"))] + [(400, b"filtered")] * 9
    with pytest.raises(ValueError, match=r"None of 9 requests .* 9 times: .*filtered"):
        bench()


def test_answers_alone_need_no_judge(bench, service):
    folder = bench(judge="none")
    assert len(lines_of(folder / "model_answer" / "m.jsonl")) == 9
    assert not (folder / "judgment").exists() and not service.requests


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"policy": ""}, "Give config.policy"),
        ({"policy": "nowhere"}, "nowhere holds no model"),
        ({"judge": "gpt"}, "judge='gpt' must be one of"),
        ({}, "None of 9 verdicts holds a mark; the first: 'yes'"),
    ],
)
def test_a_mistake_is_named(bench, fields, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        bench(**fields)
