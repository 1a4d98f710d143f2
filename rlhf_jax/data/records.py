"""Text records: dialogues, prompts, responses and comparisons, one JSON object a line.

This module defines the fields of records; json_lines.py reads the lines.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rlhf_jax.data.reading import fields
from rlhf_jax.data.reading.json_lines import (
    OnBadRecord,
    RecordError,
    keep_good,
    kind_of,
    scan_json_lines,
)
from rlhf_jax.files import writing_whole

VERSION = 1  # version of the layout below, written on every line
ROLES = ("system", "user", "assistant", "observation")
CHOICES = ("a", "b", "tie")
CRITERIA = ("helpfulness", "safety", "fluency")


# Fields of a prompt's line that are not `Prompt.extra`.
PROMPT_FIELDS = ("version", "id", "messages", "intent", "task", "reference")


# A message is {"role": one of ROLES, "content": text}, with optional "metadata" (the
# text after the role, a tool's name) and "tools" (the list that a system message has).
Message = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Dialogue:
    """A conversation to imitate, which ends with the assistant."""

    messages: tuple[Message, ...]
    intent: str = ""

    @classmethod
    def from_json(cls, record: dict) -> "Dialogue":
        messages = _messages(record, "messages")
        if messages[-1]["role"] != "assistant":
            raise RecordError("must end with the assistant.", "messages")
        return cls(messages, fields.text(record, "intent", default=""))


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A conversation to answer, which ends with the user. `task`, `reference` and
    `extra` are for checkers of answers, such as the functions of rlhf_jax/rewards/;
    models never see them."""

    id: str
    messages: tuple[Message, ...]
    intent: str = ""
    task: dict[str, Any] | None = None  # the testbed's task
    reference: str = ""  # a right answer, or a good one
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)  # all other fields

    @classmethod
    def from_json(cls, record: dict) -> "Prompt":
        messages = _messages(record, "messages")
        if messages[-1]["role"] != "user":
            raise RecordError("must end with the user.", "messages")
        return cls(
            fields.text(record, "id", default="") or prompt_id(messages),
            messages,
            fields.text(record, "intent", default=""),
            fields.optional_object(record, "task"),
            fields.text_or_number(record, "reference"),
            {name: record[name] for name in record if name not in PROMPT_FIELDS},
        )


@dataclasses.dataclass(frozen=True)
class Response:
    """A response to a prompt."""

    text: str
    ended: bool = True  # False if generation was cut at its limit of tokens
    # Token ids that a model sampled, with the end token if the response ended; None
    # for a text that no model here wrote.
    tokens: list[int] | None = None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two responses to one prompt and the better one: "a", "b" or "tie".

    `ended_a`, `tokens_a` and so on are the fields of each `Response`.
    """

    prompt: Prompt
    response_a: str
    response_b: str
    preference: str
    annotator: str = ""
    criteria: dict[str, str] | None = None  # "a", "b" or "tie" by name in CRITERIA
    shown_first: str = ""  # "a" or "b", the response shown first (left)
    seconds: float | None = None  # seconds that the annotator took
    time: str = ""  # time of the answer, ISO 8601
    task: str = ""  # id of the annotation task
    info: dict[str, Any] | None = None  # origin, for analysis and never for training
    ended_a: bool = True
    ended_b: bool = True
    tokens_a: list[int] | None = None
    tokens_b: list[int] | None = None

    @classmethod
    def from_json(cls, record: dict) -> "Comparison":
        return cls(
            prompt_of(record),
            fields.text(record, "response_a"),
            fields.text(record, "response_b"),
            fields.choice(record, "preference", CHOICES),
            fields.text(record, "annotator", default=""),
            fields.choices(record, "criteria", CRITERIA, CHOICES),
            fields.choice(record, "shown_first", ("", "a", "b"), default=""),
            fields.seconds(record, "seconds"),
            fields.text(record, "time", default=""),
            fields.text(record, "task", default=""),
            fields.optional_object(record, "info"),
            **sampled_fields(record),
        )

    @property
    def chosen(self) -> str:
        return self.responses[0].text

    @property
    def rejected(self) -> str:
        return self.responses[1].text

    @property
    def responses(self) -> tuple[Response, Response]:
        """The chosen response and the rejected one."""
        better, worse = ("b", "a") if self.preference == "b" else ("a", "b")
        return response_of(self, better), response_of(self, worse)


Record = TypeVar("Record", Dialogue, Prompt, Comparison)


def read_records(
    path: str | Path,
    kind: type[Record],
    *,
    on_bad_record: OnBadRecord = "error",
    report: Path | None = None,
) -> list[Record]:
    """Read all records of a .jsonl or .jsonl.gz file.

    Args:
        on_bad_record: "error", or "skip" to leave bad lines out.
        report: a .jsonl file that lists bad lines in either case.

    Raises:
        FileNotFoundError: the file does not exist.
        RecordError: lines are broken, named by file, line and field; or no record is
            left.
    """

    def convert(row: dict) -> Record:
        check_version(row)
        return kind.from_json(row)

    return keep_good(
        scan_json_lines(path),
        convert,
        source=path,
        on_bad_record=on_bad_record,
        report=report,
    )


def write_records(path: str | Path, records: Iterable) -> None:
    """Write dataclass records, one JSON object a line, atomically."""
    encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=to_json)
    with writing_whole(path) as file:
        for record in records:
            line = {"version": VERSION, **to_json(record)}
            file.write(encoder.encode(line) + "\n")


def to_json(record) -> dict[str, Any]:
    """Return the fields of a record as its line holds them: the inverse of
    `from_json`."""
    if not isinstance(record, Prompt):
        return vars(record)
    line = dict(vars(record))
    extra, reference = line.pop("extra"), line.pop("reference")
    return line | ({"reference": reference} if reference else {}) | extra


def response_of(record, side: str) -> Response:
    """Return the response "a" or "b" of a record that holds two."""
    names = (f"{name}_{side}" for name in ("response", "ended", "tokens"))
    return Response(*(getattr(record, name) for name in names))


def fields_of(a: Response, b: Response) -> dict[str, Any]:
    """Return the fields of a record that holds two responses, as `response_of` reads
    them."""
    return {
        "response_a": a.text,
        "response_b": b.text,
        "ended_a": a.ended,
        "ended_b": b.ended,
        "tokens_a": a.tokens,
        "tokens_b": b.tokens,
    }


def sampled_fields(record: dict) -> dict[str, Any]:
    """Read the fields of a record's two responses other than their texts."""
    ended = {
        name: fields.boolean(record, name, True) for name in ("ended_a", "ended_b")
    }
    tokens = {name: fields.token_ids(record, name) for name in ("tokens_a", "tokens_b")}
    return ended | tokens


def prompt_of(record: dict) -> Prompt:
    """Read the field "prompt" of a record."""
    value = record.get("prompt")
    if not isinstance(value, dict):
        raise RecordError(f"must be an object, not {kind_of(value)}.", "prompt")
    try:
        return Prompt.from_json(value)
    except RecordError as error:
        raise error.within("prompt") from None


def check_version(record: dict) -> None:
    version = record.get("version", VERSION)
    if version != VERSION:
        raise RecordError(
            f"is {str(version)[:80]!r}; this program reads version {VERSION}.",
            "version",
        )


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
            extras = message_extras(message)
            role = fields.choice(message, "role", ROLES)
            content = fields.text(message, "content")
        except RecordError as error:
            raise error.within(f"{field}[{i}]") from None
        messages.append({"role": role, "content": content, **extras})
    return tuple(messages)


def message_extras(message: dict) -> dict[str, Any]:
    """Read a message's optional fields "metadata" and "tools".

    Raises:
        RecordError: a field has a wrong type, or the message calls a tool in fields
            that no chat format here writes.
    """
    for name in ("tool_calls", "function_call"):
        if message.get(name):
            raise RecordError(
                "is in no chat format: give the tool's name as metadata and the call "
                "as content.",
                name,
            )
    metadata, tools = message.get("metadata"), message.get("tools")
    if metadata is not None and not isinstance(metadata, str):
        raise RecordError(f"must be text, not {kind_of(metadata)}.", "metadata")
    if tools is not None and not isinstance(tools, list):
        raise RecordError(f"must be a list, not {kind_of(tools)}.", "tools")
    extras = {"metadata": metadata, "tools": tools}
    return {name: value for name, value in extras.items() if value}


def prompt_id(messages: Sequence[Message]) -> str:
    """Return the hash of a prompt's messages, so that equal prompts have equal ids."""
    text = json.dumps(list(messages))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
