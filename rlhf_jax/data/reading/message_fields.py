"""Fields of published data sets: the many forms of a prompt or a dialogue.

Each function raises RecordError, with the field's name, for an unreadable field.
"""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from rlhf_jax.data.reading import fields
from rlhf_jax.data.reading.json_lines import RecordError, kind_of
from rlhf_jax.data.records import ROLES, Message, message_extras

# "Human:" and "Assistant:" at the start of a text, or after a blank line; in a text
# without blank lines before them (LINE_MARK), after any line end.
MARK = re.compile(r"(?:\A\s*|\r?\n[ \t]*\r?\n)(Human|Assistant):")
LINE_MARK = re.compile(r"(?:\A\s*|\r?\n)(Human|Assistant):")
ROLE_NAMES = {"human": "user", "gpt": "assistant", "model": "assistant"}
PROMPTS = ("prompt", "conversations", "instruction", "question", "input")
SYSTEMS = ("system", "system_prompt", "system_message")
CONTEXT = (*SYSTEMS, "tools", "history")
MESSAGE_KEYS = ("role", "content", "from", "value", "metadata", "tools")


class Row(dict):
    """A row without null fields, which records the names of the fields read."""

    def __init__(self, row: dict):
        super().__init__((name, x) for name, x in row.items() if x is not None)
        self.read = set()

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        return super().get(name, default)

    @property
    def unused(self) -> set[str]:
        """Names of unread fields, and of keys in messages that no record keeps."""
        read = self.read & set(self)
        inside = (f"{x}[].{key}" for x in read for key in _unkept(dict.get(self, x)))
        return (set(self) - read).union(inside)


def prompt_messages(row: Row, names: Sequence[str] = PROMPTS) -> list[Message]:
    """Read the prompt from the first of `names` that the row has, text or messages. A
    text is followed by `input`, and preceded by the context of `with_context`."""
    name = first_of(row, names)
    if isinstance(row[name], list | dict):
        return with_context(row, message_list(row, name))
    text = fields.text(row, name).strip()
    if starts_with_mark(text):
        turns = marked_turns(text)
        if turns[-1] == {"role": "assistant", "content": ""}:
            turns.pop()  # a mark at the end is the place of the answer
        return with_context(row, turns)
    if name != "input" and row.get("input"):
        text = f"{text}\n\n{fields.text(row, 'input').strip()}".strip()
    return with_context(row, [{"role": "user", "content": text}])


def with_context(row: Row, messages: list[Message]) -> list[Message]:
    """Return `messages` after the row's system text (with its `tools`) and `history`,
    each omitted if `messages` begin with it already."""
    own = [m for m in messages[:1] if m["role"] == "system"]
    rest = messages[len(own) :]
    for name in SYSTEMS:
        text = fields.text(row, name, default="").strip()
        if text and own and own[0]["content"].strip() != text:
            problem = "differs from another system text of the row."
            raise RecordError(problem, name)
        if text and not own:
            own = [{"role": "system", "content": text}]
    if tools := _tools(row):
        own = own or [{"role": "system", "content": ""}]
        if own[0].get("tools", tools) != tools:
            raise RecordError("differ from those of the system's message.", "tools")
        own = [own[0] | {"tools": tools}]
    history = _history(row)
    if rest[: len(history)] == history:
        history = []
    return [*own, *history, *rest]


def _tools(row: Row) -> list:
    """Read the list `tools`, which may be the text of a JSON list."""
    tools = row.get("tools") or []
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError):
            raise RecordError("must be a JSON list.", "tools") from None
    return message_extras({"tools": tools or None}).get("tools", [])


def _history(row: Row) -> list[Message]:
    """Read `history`: turns as [user, assistant] texts, or messages."""
    history = row.get("history") or []
    if not isinstance(history, list):
        raise RecordError(f"must be a list, not {kind_of(history)}.", "history")
    if history and all(isinstance(turn, dict) for turn in history):
        return message_list(row, "history")
    messages = []
    for i, turn in enumerate(history):
        if not is_texts(turn) or len(turn) != 2:
            raise RecordError("must be [user, assistant] texts.", f"history[{i}]")
        messages += [
            {"role": role, "content": content.strip()}
            for role, content in zip(("user", "assistant"), turn, strict=True)
        ]
    return messages


def starts_with_mark(text: str) -> bool:
    """Return True if a text is a dialogue with marks that the user begins."""
    mark = MARK.match(text)
    return mark is not None and mark[1] == "Human"


def marked_turns(text: str) -> list[Message]:
    """Split a dialogue with Human: and Assistant: marks into messages."""
    mark = MARK if len(MARK.findall(text)) > 1 else LINE_MARK
    first, *turns = mark.split(text)
    roles = {"Human": "user", "Assistant": "assistant"}
    messages = [{"role": "user", "content": first.strip()}] if first.strip() else []
    return messages + [
        {"role": roles[mark], "content": content.strip()}
        for mark, content in zip(turns[::2], turns[1::2], strict=True)
    ]


def answer_text(row: Row, field: str) -> str:
    """Read the text of an answer; drop its Assistant: mark if the prompt is a text with
    marks."""
    text, prompt = fields.text(row, field), row.get(first_of(row, PROMPTS))
    mark = MARK.match(text)
    if isinstance(prompt, str) and starts_with_mark(prompt) and mark:
        text = text[mark.end() :] if mark[1] == "Assistant" else text
    return text.strip()


def message_list(row: dict, field: str) -> list[Message]:
    """Read a list of {role, content} or {from, value}, or one such message."""
    value = as_records(row.get(field))
    value = [value] if isinstance(value, dict) else value
    if not isinstance(value, list) or not value:
        raise RecordError("must be a list of at least one message.", field)
    messages = []
    for i, message in enumerate(value):
        if not isinstance(message, dict):
            problem = f"must be an object, not {kind_of(message)}."
            raise RecordError(problem, f"{field}[{i}]")
        is_named = message.get("from") is not None
        names = ("from", "value") if is_named else ("role", "content")
        try:
            extras = message_extras(message)
            role, content = (fields.text(message, name) for name in names)
        except RecordError as error:
            raise error.within(f"{field}[{i}]") from None
        role = ROLE_NAMES.get(role, role)
        if role not in ROLES:
            problem = f"must be one of {ROLES}, not {role[:80]!r}."
            raise RecordError(problem, f"{field}[{i}].{names[0]}")
        messages.append({"role": role, "content": content.strip(), **extras})
    return messages


def _unkept(value) -> Iterator[str]:
    """Yield the keys of messages, or of a prompt's messages, that no record keeps."""
    if isinstance(value, dict) and "messages" in value:
        value = value["messages"]
    value = as_records(value)
    for message in value if isinstance(value, list) else [value]:
        for key, x in message.items() if is_message(message) else ():
            if key not in MESSAGE_KEYS and x not in (None, "", [], {}):
                yield key


def is_message(value) -> bool:
    return isinstance(value, dict) and any(
        set(names) <= set(value) for names in (("role", "content"), ("from", "value"))
    )


def as_records(value):
    """Convert an object of lists of equal length to a list of objects."""
    if isinstance(value, dict) and value:
        columns = list(value.values())
        if all(isinstance(c, list) and len(c) == len(columns[0]) for c in columns):
            rows = zip(*columns, strict=True)
            return [dict(zip(value, items, strict=True)) for items in rows]
    return value


def is_texts(value) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def vote(row: dict, field: str) -> str:
    """Read 0, 1 or 2, a number or text, as "tie", "a" or "b"."""
    value = row.get(field)
    digit = re.fullmatch(r"([012])(\.0*)?", str(value).strip())
    if isinstance(value, bool) or not digit:
        raise RecordError(f"must be 0, 1 or 2, not {str(value)[:80]!r}.", field)
    return ("tie", "a", "b")[int(digit[1])]


def number(row: dict, field: str) -> float:
    """Read a number, or the text of a number."""
    value = row.get(field)
    decimal = r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*"
    if isinstance(value, str) and re.fullmatch(decimal, value, re.ASCII):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        what = repr(value[:80]) if isinstance(value, str) else kind_of(value)
        raise RecordError(f"must be a number, not {what}.", field)
    return value


def first_of(row: dict, names: Sequence[str]) -> str:
    """Return the first of `names` that the row has."""
    first = next((name for name in names if row.get(name) is not None), None)
    if first is None:
        others = f", as are {', '.join(names[1:])}" if names[1:] else ""
        raise RecordError(f"is missing{others}.", names[0])
    return first
