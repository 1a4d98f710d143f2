"""Tasks to another tool and comparisons back, from the command line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_jax.data.annotation.answers import Answer, AnswerLog
from rlhf_jax.data.annotation.tasks import Candidates, make_tasks
from rlhf_jax.data.records import (
    Comparison,
    Prompt,
    Response,
    read_records,
    write_records,
)

ROOT = Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path):
    prompt = Prompt("p", ({"role": "user", "content": "Why?"},))
    pairs = [Candidates(prompt, Response(f"a{i}"), Response(f"b{i}")) for i in range(4)]
    tasks = make_tasks(pairs, [], known_share=0.0, repeat_share=0.0, seed=0)
    write_records(tmp_path / "tasks.jsonl", tasks)
    return tmp_path


def exchange(folder, *flags):
    return subprocess.run(
        [
            sys.executable,
            ROOT / "launch" / "exchange.py",
            f"--workdir={folder}",
            *flags,
        ],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_tools_tasks_are_written_with_its_setup_and_read_again(folder):
    file = folder / "out" / "tasks.json"
    done = exchange(folder, "--export=label_studio", f"--file={file}")
    assert done.returncode == 0, done.stderr
    assert "<Pairwise" in file.with_suffix(".xml").read_text()
    exported = json.loads(file.read_text())
    left = {"from_name": "overall", "type": "pairwise", "value": {"selected": "left"}}
    for record in exported:
        record["annotations"] = [{"completed_by": 1, "result": [left]}]
    file.write_text(json.dumps(exported))
    done = exchange(folder, "--import=label_studio", f"--file={file}")
    assert "4 comparisons by 1 annotators" in done.stderr
    for comparison in read_records(folder / "comparisons.jsonl", Comparison):
        assert comparison.preference == comparison.shown_first

    done = exchange(folder, "--export=argilla", f"--file={file}", "--criteria=safety")
    settings = json.loads(file.with_suffix(".settings.json").read_text())
    assert [q["name"] for q in settings["questions"]] == ["safety", "overall"]


def test_the_pages_answers_become_comparisons_also_while_it_runs(folder):
    log = AnswerLog(folder / "answers.jsonl")
    log.append(Answer("task-000001", "ann", "b"))
    log.append(Answer("task-000002", "ann", "skip"))
    done = exchange(folder, "--import=page")
    log.close()
    assert "1 comparisons by 1 annotators" in done.stderr
    assert "Left out: skipped 1." in done.stderr
    (comparison,) = read_records(folder / "comparisons.jsonl", Comparison)
    assert (comparison.task, comparison.preference) == ("task-000001", "b")


def test_another_import_is_not_overwritten_and_can_be_joined(folder):
    log = AnswerLog(folder / "answers.jsonl")
    log.append(Answer("task-000001", "ann", "b"))
    log.close()
    assert exchange(folder, "--import=page").returncode == 0
    before = (folder / "comparisons.jsonl").read_bytes()
    file = folder / "argilla.json"
    exchange(folder, "--export=argilla", f"--file={file}")
    exported = json.loads(file.read_text())
    response = {"value": "tie", "user_id": "bob"}
    exported[0]["responses"] = {"overall": [response]}
    file.write_text(json.dumps(exported))

    flags = ["--import=argilla", f"--file={file}"]
    done = exchange(folder, *flags)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "comparisons.jsonl holds 1 comparisons that" in done.stderr.splitlines()[-1]
    assert "by ann: another import. Keep them with --join" in done.stderr
    assert (folder / "comparisons.jsonl").read_bytes() == before

    for _ in range(2):  # what is joined stays joined, and comes once
        assert exchange(folder, *flags, "--join").returncode == 0
        records = read_records(folder / "comparisons.jsonl", Comparison)
        assert [record.annotator for record in records] == ["ann", "bob"]

    log = AnswerLog(folder / "answers.jsonl")
    log.append(Answer("task-000002", "ann", "a"))
    log.close()
    assert exchange(folder, "--import=page", "--join").returncode == 0
    records = read_records(folder / "comparisons.jsonl", Comparison)
    assert [record.annotator for record in records] == ["bob", "ann", "ann"]


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        (None, ["--import=page"], "There is no file"),
        (b"", ["--import=page"], "holds no answers"),
        (b"{}", ["--import=argilla"], "file: The export must be a list of records"),
        (b"\xff", ["--import=argilla"], "file is not JSON"),
        (b"[" * 10**5, ["--import=label_studio"], "file is not JSON"),
        (b"[]", ["--import=label_studio"], "file holds no answers"),
        (
            b'{"task": "t", "annotator": "ann", "preference": "a"}',
            ["--import=page"],
            "file: answer 1: 'ann' answers 't', which is not a task here",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(content, flags, message, folder):
    file = folder / "file"
    if content is not None:
        file.write_bytes(content)
    done = exchange(folder, *flags, f"--file={file}")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert message in done.stderr.splitlines()[-1]
    assert not (folder / "comparisons.jsonl").exists()
