"""Annotators' answers, one line each, on disk before the next task is shown."""

import dataclasses
import errno
import fcntl
import json
import os
from collections.abc import Iterable
from pathlib import Path

from absl import logging

from rlhf_jax.data.annotation.tasks import Task
from rlhf_jax.data.reading import fields
from rlhf_jax.data.reading.json_lines import checked
from rlhf_jax.data.records import (
    CHOICES,
    CRITERIA,
    VERSION,
    Comparison,
    fields_of,
    read_records,
    response_of,
)


class LogInUseError(ValueError):
    """Another process has the answers open for appending."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """One annotator's answer to one task."""

    task: str
    annotator: str
    preference: str  # "a", "b", "tie" or "skip"
    criteria: dict[str, str] | None = None  # "a", "b" or "tie" by name in CRITERIA
    seconds: float | None = None  # seconds from the task's appearance to the answer
    time: str = ""  # time of the answer, ISO 8601
    both_bad: bool = False  # True for a tie of two unacceptable responses

    @classmethod
    def from_json(cls, record: dict) -> "Answer":
        return cls(
            fields.text(record, "task"),
            fields.text(record, "annotator"),
            fields.choice(record, "preference", (*CHOICES, "skip")),
            fields.choices(record, "criteria", CRITERIA, CHOICES),
            fields.seconds(record, "seconds"),
            fields.text(record, "time", default=""),
            fields.boolean(record, "both_bad", False),
        )


def comparisons(tasks: dict[str, Task], answers: Iterable[Answer]) -> list[Comparison]:
    """Convert answers to records, without those of skipped tasks.

    Raises:
        ValueError: an answer to an unknown task, or two to one task by one annotator.
    """
    records = []
    seen = set()
    for number, answer in enumerate(answers, start=1):
        who = f"answer {number}: {answer.annotator[:80]!r} answers {answer.task[:80]!r}"
        if answer.task not in tasks:
            raise ValueError(f"{who}, which is not a task here.")
        if (answer.task, answer.annotator) in seen:
            raise ValueError(f"{who} twice.")
        seen.add((answer.task, answer.annotator))
        if answer.preference == "skip":
            continue
        task = tasks[answer.task]
        info = {
            "known_answer": task.known_answer,
            "repeat_of": task.repeat_of,
            "settings_a": task.settings_a,
            "settings_b": task.settings_b,
            "both_bad": answer.both_bad,
        }
        records.append(
            Comparison(
                prompt=task.prompt,
                preference=answer.preference,
                annotator=answer.annotator,
                criteria=answer.criteria,
                shown_first=task.shown_first,
                seconds=answer.seconds,
                time=answer.time,
                task=task.id,
                info={name: value for name, value in info.items() if value} or None,
                **fields_of(response_of(task, "a"), response_of(task, "b")),
            )
        )
    return records


class AnswerLog:
    """The file answers.jsonl, open for appending by one process at a time.

    A crash can leave half a line at the end of the file. Opening the file moves half a
    line to answers.jsonl.torn and logs a warning; the answer in it was never confirmed.

    Attributes:
        answers: all answers in the file.
    """

    def __init__(self, path: str | Path):
        """Open or make the file.

        Raises:
            LogInUseError: another process has the file open.
            RecordError: a line that is not the last is broken; the message names file
                and line.
        """
        self.path = Path(path)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LogInUseError(
                    f"Another process has {self.path} open: only one page at a time "
                    "can serve these tasks, and any number of annotators can use it."
                ) from None
            _sync_folder(self.path)
            self._end = self._mend()
            self.answers = read_records(self.path, Answer) if self._end else []
        except Exception:
            self.close()
            raise

    def append(self, answer: Answer) -> None:
        """Write an answer, which is on disk when this method returns.

        Raises:
            OSError: the answer could not be written (a full disk); the file is as
                before.
        """
        line = {"version": VERSION, **dataclasses.asdict(answer)}
        data = json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        os.ftruncate(self._file, self._end)  # if the truncation below has failed once
        try:
            written = os.write(self._file, data)
            if written < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, self._end)
            raise
        self._end += len(data)
        self.answers.append(answer)

    def close(self) -> None:
        os.close(self._file)

    def _mend(self) -> int:
        """Complete or set aside a last line without end; return the file's size."""
        data = self.path.read_bytes()
        tail = data.rpartition(b"\n")[2]
        if not tail:
            return len(data)
        if _is_answer(tail):  # only the end of the line is missing
            os.write(self._file, b"\n")
            os.fsync(self._file)
            return len(data) + 1
        torn = self.path.with_name(self.path.name + ".torn")
        with torn.open("ab") as file:
            file.write(tail + b"\n")
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(torn)
        os.ftruncate(self._file, len(data) - len(tail))
        os.fsync(self._file)
        logging.warning(
            "%s ended in half a line, from a crash during the write: its %d bytes are "
            "now in %s. Its annotator was not told that the answer was saved.",
            self.path,
            len(tail),
            torn,
        )
        return len(data) - len(tail)


def read_answers(path: str | Path) -> list[Answer]:
    """Read the answers of a file, even while a page is appending to the file.

    Raises:
        FileNotFoundError: the file does not exist.
        RecordError: a line is broken.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        log = AnswerLog(path)
    except LogInUseError:
        return read_records(path, Answer)
    log.close()
    return log.answers


def _is_answer(line: bytes) -> bool:
    try:
        Answer.from_json(checked(json.loads(line)))
    except (ValueError, RecursionError):  # not UTF-8, not JSON or not an answer
        return False
    return True


def _sync_folder(path: Path) -> None:
    """Make the file's entry in its folder durable."""
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)
