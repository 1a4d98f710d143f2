"""Answers on disk: none lost, none duplicated, half a line set aside."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_jax.data.annotation.answers import (
    Answer,
    AnswerLog,
    LogInUseError,
    comparisons,
    read_answers,
)
from rlhf_jax.data.records import (
    Comparison,
    RecordError,
    read_records,
    response_of,
    write_records,
)

ANN = Answer("task-000001", "ann", "a", {"safety": "tie"}, 3.5, "2026-01-02T03:04:05")
BOB = Answer("task-000001", "bob ü 王", "tie")


def write(path, *answers):
    log = AnswerLog(path)
    for answer in answers:
        log.append(answer)
    log.close()
    return path.read_bytes()


def test_an_answer_is_in_the_file_and_flushed_when_append_returns(
    tmp_path, monkeypatch
):
    path = tmp_path / "answers.jsonl"
    log = AnswerLog(path)
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda file: synced.append(path.read_bytes()) or fsync(file)
    )
    log.append(ANN)
    assert synced == [path.read_bytes()]
    assert read_records(path, Answer) == [ANN]
    log.append(BOB)
    assert read_answers(path) == log.answers == [ANN, BOB]  # while the log is open
    log.close()


def test_every_way_to_cut_the_last_line_loses_nothing_that_was_confirmed(tmp_path):
    path = tmp_path / "answers.jsonl"
    whole = write(path, ANN, BOB)
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole) + 1):
        path.write_bytes(whole[:cut])
        torn = path.with_name("answers.jsonl.torn")
        torn.unlink(missing_ok=True)
        log = AnswerLog(path)
        complete = cut >= len(whole) - 1  # at most the line's end is missing
        assert log.answers == ([ANN, BOB] if complete else [ANN])
        set_aside = torn.read_bytes() if torn.exists() else b""
        assert set_aside.rstrip(b"\n") == (b"" if complete else whole[first:cut])
        log.append(Answer("task-000002", "ann", "b"))
        log.close()
        assert read_answers(path)[-1].task == "task-000002"


def test_zeros_at_the_end_from_a_power_cut_are_set_aside(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_bytes(write(path, ANN) + b"\0" * 100)
    assert read_answers(path) == [ANN]
    assert (tmp_path / "answers.jsonl.torn").read_bytes() == b"\0" * 100 + b"\n"


def test_a_broken_line_in_the_middle_is_an_error_and_nothing_is_touched(tmp_path):
    path = tmp_path / "answers.jsonl"
    broken = b'{"task": "t"}\n' + write(path, ANN)
    path.write_bytes(broken)
    with pytest.raises(RecordError, match=r"line 1, field 'annotator': is missing"):
        AnswerLog(path)
    assert path.read_bytes() == broken


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "answers.jsonl"
    log = AnswerLog(path)
    log.append(ANN)
    before = path.read_bytes()
    real_write = os.write
    with monkeypatch.context() as patch:
        # The disk takes ten bytes more.
        patch.setattr(os, "write", lambda file, data: real_write(file, data[:10]))
        with pytest.raises(OSError, match="No space left on device"):
            log.append(BOB)
    assert path.read_bytes() == before
    assert log.answers == [ANN]
    log.append(BOB)
    log.close()
    assert read_answers(path) == [ANN, BOB]


WRITER = """
import sys
from rlhf_jax.data.annotation.answers import Answer, AnswerLog
log = AnswerLog(sys.argv[1])
for number in range(len(log.answers), 10**9):
    log.append(Answer(f"task-{number}", "ann", "a"))
    print(number, flush=True)
"""


def test_kill_9_loses_no_confirmed_answer_and_doubles_none(tmp_path):
    path = tmp_path / "answers.jsonl"
    confirmed = []
    for stop in (20, 60, 150):  # each takes up what the one before it left
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, path],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[3],
        )
        confirmed += [process.stdout.readline() for _ in range(stop)]
        process.kill()
        confirmed += process.stdout.read().splitlines()
        process.wait()
        kept = [answer.task for answer in read_answers(path)]
        assert kept == [f"task-{number}" for number in range(len(kept))]
        assert len(kept) > int(confirmed[-1])


def test_two_processes_cannot_append_to_one_file(tmp_path):
    log = AnswerLog(tmp_path / "answers.jsonl")
    with pytest.raises(LogInUseError, match=r"Another process has .*answers.jsonl"):
        AnswerLog(tmp_path / "answers.jsonl")
    log.close()
    AnswerLog(tmp_path / "answers.jsonl").close()


def test_comparisons_carry_everything_that_cleaning_needs(make_queue, tmp_path):
    tasks = make_queue()
    known = next(task for task in tasks.values() if task.known_answer)
    repeat = next(task for task in tasks.values() if task.repeat_of)
    original = tasks[repeat.repeat_of]
    answers = [
        Answer(known.id, "ann", "b", {"fluency": "a"}, 2.5, "2026-01-01T00:00:00"),
        Answer(original.id, "ann", "a"),
        Answer(repeat.id, "ann", "b"),
        Answer(original.id, "bob", "skip"),
    ]
    write_records(tmp_path / "c.jsonl", comparisons(tasks, answers))
    found = read_records(tmp_path / "c.jsonl", Comparison)
    assert len(found) == 3  # a skip is no comparison
    assert found[0].info["known_answer"] == "a"
    assert (found[0].preference, found[0].criteria) == ("b", {"fluency": "a"})
    assert (found[0].seconds, found[0].time) == (2.5, "2026-01-01T00:00:00")
    assert [c.task for c in found] == [known.id, original.id, repeat.id]
    assert found[1].shown_first != found[2].shown_first
    assert (found[1].response_a, found[1].response_b) == (
        found[2].response_a,
        found[2].response_b,
    )
    assert found[1].chosen == found[2].rejected  # the annotator contradicted herself
    assert "known_answer" not in found[1].info
    assert found[1].info["settings_a"] == {"sample": 0}
    for comparison, task in zip(found, (known, original, repeat), strict=True):
        for side in "ab":
            assert response_of(comparison, side) == response_of(task, side)
    assert {task.ended_a for task in tasks.values()} == {True, False}


def test_answers_of_other_tasks_and_double_answers_are_refused(make_queue):
    tasks = make_queue()
    with pytest.raises(ValueError, match="'ann' answers 'task-x', which is not a task"):
        comparisons(tasks, [Answer("task-x", "ann", "a")])
    with pytest.raises(ValueError, match="'ann' answers 'task-000001' twice"):
        comparisons(tasks, [ANN, ANN])
