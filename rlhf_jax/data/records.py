"""Text records: dialogues, prompts, responses and comparisons, one JSON object a line.

What a record may hold is said here; json_lines.py reads the lines.
"""

import dataclasses
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from rlhf_jax.data.json_lines import (
    OnBadRecord,
    RecordError,
    keep_good,
    kind_of,
    scan_json_lines,
)

VERSION = 1  # of the layout below; written on every line
ROLES = ("system", "user", "assistant", "observation")
CHOICES = ("a", "b", "tie")
CRITERIA = ("helpfulness", "safety", "fluency")


Message = dict[str, str]  # {"role": one of ROLES, "content": text}


@dataclasses.dataclass(frozen=True)
class Dialogue:
    """A conversation to imitate: ends with the assistant."""

    messages: tuple[Message, ...]
    intent: str = ""

    @classmethod
    def from_json(cls, record: dict) -> "Dialogue":
        messages = _messages(record, "messages")
        if messages[-1]["role"] != "assistant":
            raise RecordError("must end with the assistant.", "messages")
        return cls(messages, _string(record, "intent", default=""))


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A conversation to answer: ends with the user. `task` is whatever a checker of
    answers needs (the testbed's scorer reads it; training never does)."""

    id: str
    messages: tuple[Message, ...]
    intent: str = ""
    task: dict[str, Any] | None = None

    @classmethod
    def from_json(cls, record: dict) -> "Prompt":
        messages = _messages(record, "messages")
        if messages[-1]["role"] != "user":
            raise RecordError("must end with the user.", "messages")
        return cls(
            _string(record, "id"),
            messages,
            _string(record, "intent", default=""),
            _object(record, "task"),
        )


@dataclasses.dataclass(frozen=True)
class Response:
    """What a model answered to a prompt, and how it was sampled."""

    prompt: Prompt
    text: str
    model: str = ""  # the checkpoint that answered
    settings: dict[str, Any] | None = None  # temperature, top_p, seed, ...

    @classmethod
    def from_json(cls, record: dict) -> "Response":
        return cls(
            _prompt(record),
            _string(record, "text"),
            _string(record, "model", default=""),
            _object(record, "settings"),
        )


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two responses to one prompt and which is better: "a", "b" or "tie"."""

    prompt: Prompt
    response_a: str
    response_b: str
    preference: str
    annotator: str = ""
    criteria: dict[str, str] | None = None  # of CRITERIA: "a", "b" or "tie"
    shown_first: str = ""  # "a" or "b": which response stood first (left)
    seconds: float | None = None  # that the annotator took
    time: str = ""  # when, ISO 8601
    task: str = ""  # the annotation task that this answers
    info: dict[str, Any] | None = None  # how it was made; for study, never for training

    @classmethod
    def from_json(cls, record: dict) -> "Comparison":
        return cls(
            _prompt(record),
            _string(record, "response_a"),
            _string(record, "response_b"),
            _choice(record, "preference", CHOICES),
            _string(record, "annotator", default=""),
            _criteria(record, "criteria"),
            _choice(record, "shown_first", ("", "a", "b"), default=""),
            _seconds(record, "seconds"),
            _string(record, "time", default=""),
            _string(record, "task", default=""),
            _object(record, "info"),
        )

    @property
    def chosen(self) -> str:
        return self.response_b if self.preference == "b" else self.response_a

    @property
    def rejected(self) -> str:
        return self.response_a if self.preference == "b" else self.response_b


Record = TypeVar("Record", Dialogue, Prompt, Response, Comparison)


def read_records(
    path: str | Path,
    kind: type[Record],
    *,
    on_bad_record: OnBadRecord = "error",
    report: Path | None = None,
) -> list[Record]:
    """All records of a .jsonl or .jsonl.gz file.

    Args:
        on_bad_record: "error", or "skip" to leave bad lines out.
        report: a .jsonl file in which bad lines are listed either way.

    Raises:
        FileNotFoundError: there is no such file.
        RecordError: lines are broken, named by file, line and field; or none is left.
    """

    def convert(row: dict) -> Record:
        _check_version(row)
        return kind.from_json(row)

    return keep_good(
        scan_json_lines(path),
        convert,
        source=path,
        on_bad_record=on_bad_record,
        report=report,
    )


def write_records(path: str | Path, records: Iterable) -> None:
    """Write dataclass records, one JSON object a line; the file appears whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        for record in records:
            line = {"version": VERSION, **dataclasses.asdict(record)}
            file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
    temporary.replace(path)


def _string(record: dict, field: str, default: str | None = None) -> str:
    value = record.get(field, default)
    if value is None:
        raise RecordError("is missing or null.", field)
    if not isinstance(value, str):
        raise RecordError(f"must be text, not {kind_of(value)}.", field)
    return value


def _choice(
    record: dict, field: str, choices: tuple[str, ...], default: str | None = None
) -> str:
    value = _string(record, field, default)
    if value not in choices:
        raise RecordError(f"must be one of {choices}, not {value[:80]!r}.", field)
    return value


def _criteria(record: dict, field: str) -> dict[str, str] | None:
    value = _object(record, field)
    for name, choice in (value or {}).items():
        if name not in CRITERIA or choice not in CHOICES:
            raise RecordError(
                f"must give {', '.join(CRITERIA)} one of {CHOICES}, not "
                f"{name[:80]!r}: {str(choice)[:80]!r}.",
                field,
            )
    return value


def _seconds(record: dict, field: str) -> float | None:
    value = record.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RecordError(f"must be a number, not {kind_of(value)}.", field)
    if not 0 <= value <= sys.float_info.max:
        raise RecordError(f"must be seconds, 0 or more, not {str(value)[:80]}.", field)
    return float(value)


def _prompt(record: dict) -> Prompt:
    value = record.get("prompt")
    if not isinstance(value, dict):
        raise RecordError(f"must be an object, not {kind_of(value)}.", "prompt")
    try:
        return Prompt.from_json(value)
    except RecordError as error:
        raise error.within("prompt") from None


def _check_version(record: dict) -> None:
    version = record.get("version", VERSION)
    if version != VERSION:
        raise RecordError(
            f"is {str(version)[:80]!r}; this program reads version {VERSION}.",
            "version",
        )


def _object(record: dict, field: str) -> dict | None:
    value = record.get(field)
    if value is not None and not isinstance(value, dict):
        raise RecordError(f"must be an object, not {kind_of(value)}.", field)
    return value


def _messages(record: dict, field: str) -> tuple[Message, ...]:
    value = record.get(field)
    if not isinstance(value, list) or not value:
        raise RecordError("must be a list of at least one message.", field)
    messages = []
    for i, message in enumerate(value):
        if not isinstance(message, dict):
            raise RecordError(
                f"must be an object, not {kind_of(message)}.", f"{field}[{i}]"
            )
        try:
            role, content = _choice(message, "role", ROLES), _string(message, "content")
        except RecordError as error:
            raise error.within(f"{field}[{i}]") from None
        messages.append({"role": role, "content": content})
    return tuple(messages)
