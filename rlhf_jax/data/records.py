"""Text records: dialogues, prompts and comparisons, one JSON object a line.

Reading is strict: a bad line raises with file, line and field.
"""

import dataclasses
import gzip
import json
import math
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

VERSION = 1  # of the layout below; written on every line
ROLES = ("system", "user", "assistant", "observation")
CHOICES = ("a", "b", "tie")
CRITERIA = ("helpfulness", "safety", "fluency")


class RecordError(ValueError):
    """A line that is no valid record; the message says where and what is wrong."""


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
            raise RecordError("field 'messages' must end with the assistant.")
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
            raise RecordError("field 'messages' must end with the user.")
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


def read_records(path: str | Path, kind: type[Record]) -> list[Record]:
    """All records of a .jsonl or .jsonl.gz file.

    Raises:
        FileNotFoundError: there is no such file.
        RecordError: a line is broken; names the file, the line and the field.
    """
    records = []
    for number, record in read_json_lines(path):
        try:
            _check_version(record)
            records.append(kind.from_json(record))
        except RecordError as error:
            raise RecordError(f"{path}, line {number}: {error}") from None
    if not records:
        raise RecordError(f"{path} holds no records.")
    return records


def read_json_lines(path: str | Path) -> Iterator[tuple[int, dict]]:
    """(line number, object) for each line of a .jsonl or .jsonl.gz file.

    Raises:
        RecordError: a line is not UTF-8, not JSON or not an object, or the gzip
            stream is broken; names the file and the line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, _parse_line(path, number, line)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise RecordError(
            f"{path} is not a whole gzip file (after line {number}): {error}"
        ) from None


def write_records(path: str | Path, records: Iterable) -> None:
    """Write dataclass records, one JSON object a line; the file appears whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        for record in records:
            line = {"version": VERSION, **dataclasses.asdict(record)}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    temporary.replace(path)


def _parse_line(path: Path, number: int, line: bytes) -> dict:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RecordError(f"{path}, line {number}: not UTF-8: {error}") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise RecordError(f"{path}, line {number}: not JSON: {error}") from None
    if not isinstance(record, dict):
        raise RecordError(
            f"{path}, line {number}: must be a JSON object, not {_kind(record)}."
        )
    return record


def _string(record: dict, field: str, default: str | None = None) -> str:
    value = record.get(field, default)
    if value is None:
        raise RecordError(f"field '{field}' is missing.")
    if not isinstance(value, str):
        raise RecordError(f"field '{field}' must be text, not {_kind(value)}.")
    return value


def _choice(
    record: dict, field: str, choices: tuple[str, ...], default: str | None = None
) -> str:
    value = _string(record, field, default)
    if value not in choices:
        raise RecordError(f"field '{field}' must be one of {choices}, not {value!r}.")
    return value


def _criteria(record: dict, field: str) -> dict[str, str] | None:
    value = _object(record, field)
    for name, choice in (value or {}).items():
        if name not in CRITERIA or choice not in CHOICES:
            raise RecordError(
                f"field '{field}' must give {', '.join(CRITERIA)} one of {CHOICES}, "
                f"not {name!r}: {choice!r}."
            )
    return value


def _seconds(record: dict, field: str) -> float | None:
    value = record.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RecordError(f"field '{field}' must be a number, not {_kind(value)}.")
    if not 0 <= value < math.inf:
        raise RecordError(f"field '{field}' must be seconds, not {value}.")
    return float(value)


def _prompt(record: dict) -> Prompt:
    if not isinstance(record.get("prompt"), dict):
        raise RecordError("field 'prompt' must be an object.")
    return Prompt.from_json(record["prompt"])


def _check_version(record: dict) -> None:
    version = record.get("version", VERSION)
    if version != VERSION:
        raise RecordError(
            f"field 'version' is {version!r}; this program reads version {VERSION}."
        )


def _object(record: dict, field: str) -> dict | None:
    value = record.get(field)
    if value is not None and not isinstance(value, dict):
        raise RecordError(f"field '{field}' must be an object, not {_kind(value)}.")
    return value


def _messages(record: dict, field: str) -> tuple[Message, ...]:
    value = record.get(field)
    if not isinstance(value, list) or not value:
        raise RecordError(f"field '{field}' must be a list of at least one message.")
    messages = []
    for i, message in enumerate(value):
        if not isinstance(message, dict):
            raise RecordError(f"field '{field}[{i}]' must be an object.")
        try:
            role, content = _string(message, "role"), _string(message, "content")
        except RecordError as error:
            raise RecordError(f"field '{field}[{i}]': {error}") from None
        if role not in ROLES:
            raise RecordError(
                f"field '{field}[{i}].role' must be one of {ROLES}, not {role!r}."
            )
        messages.append({"role": role, "content": content})
    return tuple(messages)


def _kind(value) -> str:
    return "null" if value is None else type(value).__name__
