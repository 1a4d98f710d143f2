"""From files to files: every prompt goes out or is listed with a reason."""

import ast
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from configs import prepare_prompts as config_file
from rlhf_jax.data.chat_client import ChatClient, ChatSettings
from rlhf_jax.data.records import Prompt, read_records, write_records
from rlhf_jax.data.transport import Transport
from rlhf_jax.stages import prepare_prompts


def ask(text, intent="chat"):
    return Prompt(text, ({"role": "user", "content": text},), intent)


PROMPTS = [
    ask("What is the capital of France?", "facts"),
    ask("what is the  capital of France?", "facts"),
    ask("Please write a short story about a cat who lives at sea.", "writing"),
    ask("Please write a short story about a cat who lives at sea!!", "writing"),
    ask("Please write a poem about autumn leaves.", "writing"),
    ask("x", "chat"),
    ask("blah blah blah blah blah blah blah blah blah blah", "chat"),
]


@pytest.fixture
def prepare(tmp_path):
    """`prepare(min_score=0.5)`: run the stage; returns its workdir."""

    def run(name="out", **fields):
        path = tmp_path / "prompts.jsonl"
        if not path.exists():
            write_records(path, PROMPTS)
        config = config_file.get_config()
        config.prompts = str(path)
        config.judge.update(fields.pop("judge", {}))
        config.update(fields)
        prepare_prompts.run(config, str(tmp_path / name))
        return tmp_path / name

    return run


@pytest.mark.parametrize("name", ["x.csv", "x.json", "x.jsonl", "set/train.json"])
def test_files_and_folders_of_any_kind_hold_prompts(tmp_path, name, caplog):
    caplog.set_level("INFO")
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    rows = [
        {"prompt": "NA", "system": "Be brief.", "note": "x"},
        {"prompt": "5", "system": None, "note": None},
    ]
    cells = "\n".join(",".join(x or "" for x in row.values()) for row in rows)
    lines = "\n".join(map(json.dumps, rows))
    content = {"csv": f"prompt,system,note\n{cells}", "json": json.dumps(rows)}
    path.write_text(content.get(name.rpartition(".")[2], lines))
    origin = path.parent if path.parent != tmp_path else path
    config = config_file.get_config()
    found = prepare_prompts.read(str(origin), config, tmp_path / "bad.jsonl")
    assert [[m["content"] for m in prompt.messages] for prompt in found] == [
        ["Be brief.", "NA"],
        ["5"],
    ]
    assert [prompt.extra for prompt in found] == [{"note": "x"}, {}]
    with pytest.raises(FileNotFoundError, match="There is no file or folder"):
        prepare_prompts.read(f"{origin}.none", config, tmp_path / "bad.jsonl")


def dropped(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "dropped.jsonl").open()]


def test_every_prompt_goes_out_or_is_listed_with_its_reason(prepare):
    folder = prepare(min_per_intent=2)
    kept = read_records(folder / "prompts.jsonl", Prompt)
    assert [p.id for p in kept] == [PROMPTS[i].id for i in (0, 2, 4)]
    reasons = Counter(line["reason"] for line in dropped(folder))
    assert reasons == Counter(
        ["duplicate", "near-duplicate", "too short", "low semantics"]
    )
    assert len(kept) + reasons.total() == len(PROMPTS)
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["in"], summary["out"]) == (7, 3)
    assert {f"dropped: {name}" for name in reasons} <= set(summary)
    assert summary["intents that fall short"] == {"chat": 0, "facts": 1}
    assert "near-duplicate" in (folder / "report.md").read_text()
    # What is left is left as it is.
    again = prepare("again", prompts=str(folder / "prompts.jsonl"))
    assert read_records(again / "prompts.jsonl", Prompt) == kept


def test_large_intents_are_cut(prepare):
    folder = prepare(max_per_intent=1)
    kept = read_records(folder / "prompts.jsonl", Prompt)
    assert Counter(p.intent for p in kept) == {"facts": 1, "writing": 1}


def test_a_judge_that_gives_no_verdict_is_counted(prepare, monkeypatch):
    def answers(self, conversations):
        verdicts = iter(['{"intention": 5, "semantics": 5, "answerability": 5}', "?"])
        return [next(verdicts, "no idea") for _ in conversations]

    monkeypatch.setattr(ChatClient, "answers", answers)
    monkeypatch.setattr(ChatClient, "check", lambda self: None)
    folder = prepare(scorer="judge", judge={"model": "m"})
    kept = read_records(folder / "prompts.jsonl", Prompt)
    assert [p.id for p in kept] == [PROMPTS[0].id]
    reasons = Counter(line["reason"] for line in dropped(folder))
    assert reasons["no verdict"] == 3


def test_requests_without_an_answer_are_prompts_without_a_verdict(
    prepare, service, caplog
):
    def speak(messages):
        if "story" in messages[-1]["content"]:
            return b'{"choices": [{"message": {"content": null}}]}'
        return '{"intention": "5", "semantics": 5, "answerability": 5}'

    service.speak = speak
    folder = prepare(scorer="judge", judge={"model": "m", "url": service.url})
    kept = read_records(folder / "prompts.jsonl", Prompt)
    assert [p.id for p in kept] == [PROMPTS[i].id for i in (0, 4, 6)]
    assert [line["id"] for line in dropped(folder) if line["reason"] == "no verdict"]
    assert "1 of 4 requests to m have no answer and count as missing" in caplog.text


def test_a_judge_that_is_not_there_is_known_before_anything_is_read(
    prepare, monkeypatch
):
    monkeypatch.setattr(Transport, "_pause", lambda *args: None)
    with pytest.raises(ValueError, match=r"Cannot reach http://127.0.0.1:1/v1"):
        prepare(
            scorer="judge",
            judge={"model": "m", "url": "http://127.0.0.1:1/v1"},
            prompts="nowhere.jsonl",
        )


def test_heads_are_asked_by_criterion(prepare, monkeypatch):
    def load_head(folder, config):
        return lambda question, texts: np.array(
            [5.0 if folder == "a" or "cat" in text else -5.0 for text in texts]
        )

    monkeypatch.setattr(prepare_prompts, "load_head", load_head)
    folder = prepare(scorer="heads", heads="intention=a,semantics=a,answerability=b")
    kept = read_records(folder / "prompts.jsonl", Prompt)
    assert [p.id for p in kept] == [PROMPTS[2].id]
    reasons = Counter(line["reason"] for line in dropped(folder))
    assert reasons["low answerability"] == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scorer": "magic"}, r"must be one of \('rules', 'judge'"),
        ({"scorer": "judge"}, "Set config.judge.model"),
        (
            {"scorer": "judge", "judge": {"model": "m", "api_key_variable": "NO_SUCH"}},
            "environment variable NO_SUCH is not set",
        ),
        ({"scorer": "heads"}, "must be intention=FOLDER,semantics=FOLDER"),
        ({"prompts": ""}, "Set config.prompts"),
        ({"min_characters": 1000}, "None of 7 prompts is left: too short 7"),
    ],
)
def test_a_mistake_is_named(prepare, fields, message):
    with pytest.raises(ValueError, match=message):
        prepare(**fields)


def test_rows_of_other_layouts_are_prompts_too(prepare, tmp_path):
    rows = [
        {"instruction": "Name three colours", "input": "", "category": "lists"},
        {"prompt": [{"role": "user", "content": "Who wrote Hamlet?"}]},
        {"prompt": [{"role": "assistant", "content": "I did."}]},
        {"prompt": 3},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {"prompts": str(path), "intent_field": "category"}
    with pytest.raises(ValueError, match="2 bad of 4"):
        prepare(**fields)
    folder = prepare("skip", on_bad_record="skip", **fields)
    kept = read_records(folder / "prompts.jsonl", Prompt)
    assert [(p.messages[0]["content"], p.intent) for p in kept] == [
        ("Name three colours", "lists"),
        ("Who wrote Hamlet?", ""),
    ]
    assert len((folder / "bad_records.jsonl").read_text().splitlines()) == 2


def test_every_option_is_read_and_every_option_read_exists():
    source = ast.parse(Path(prepare_prompts.__file__).read_text())
    read = {
        node.attr
        for node in ast.walk(source)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "config"
    }
    config = config_file.get_config()
    assert read | {"stage", "matmul_precision"} == set(config)
    fields = set(ChatSettings.__dataclass_fields__)
    assert set(config.judge) == fields | {"api_key_variable"}
