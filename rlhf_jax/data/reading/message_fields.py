"""Fields of published data sets: the many ways to write a prompt or a dialogue.

Each function raises RecordError, with the field's name, for what it cannot read.
"""

from collections.abc import Sequence

from rlhf_jax.data.reading import fields
from rlhf_jax.data.reading.json_lines import RecordError, kind_of
from rlhf_jax.data.records import ROLES, Message

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
ROLE_NAMES = {"human": "user", "gpt": "assistant", "model": "assistant"}


def prompt_messages(row: dict) -> list[Message]:
    """From `prompt` or `conversations` (text or messages), `question`, or `instruction`
    and `input`; `system` and `history` before it."""
    name = first_of(row, ("prompt", "conversations", "instruction", "question"))
    if isinstance(row[name], list | dict):
        return message_list(row, name)
    text = fields.text(row, name).strip()
    if f"\n\n{text}".startswith(HUMAN):
        return marked_turns(f"\n\n{text}".removesuffix(ASSISTANT))
    if row.get("input"):
        text = f"{text}\n\n{fields.text(row, 'input').strip()}".strip()
    messages = []
    if row.get("system"):
        messages.append({"role": "system", "content": fields.text(row, "system")})
    history = row.get("history") or []
    if not isinstance(history, list):
        raise RecordError(f"must be a list, not {kind_of(history)}.", "history")
    for i, turn in enumerate(history):
        if not is_texts(turn):
            raise RecordError("must be [user, assistant] texts.", f"history[{i}]")
        messages += [
            {"role": role, "content": content.strip()}
            for role, content in zip(("user", "assistant"), turn, strict=False)
        ]
    return [*messages, {"role": "user", "content": text}]


def marked_turns(text: str) -> list[Message]:
    """A dialogue with Human: and Assistant: marks."""
    messages = []
    for i, turn in enumerate(text.split(HUMAN)):
        if i == 0 and not turn.strip():
            continue  # what stands before the first mark
        question, *answers = turn.split(ASSISTANT)
        messages.append({"role": "user", "content": question.strip()})
        messages += [{"role": "assistant", "content": a.strip()} for a in answers]
    return messages


def message_list(row: dict, field: str) -> list[Message]:
    """A list of {role, content} or {from, value}; or one such message."""
    value = as_records(row.get(field))
    value = [value] if isinstance(value, dict) else value
    if not isinstance(value, list) or not value:
        raise RecordError("must be a list of at least one message.", field)
    messages = []
    for i, message in enumerate(value):
        if not isinstance(message, dict):
            problem = f"must be an object, not {kind_of(message)}."
            raise RecordError(problem, f"{field}[{i}]")
        names = ("from", "value") if "from" in message else ("role", "content")
        try:
            role, content = (fields.text(message, name) for name in names)
        except RecordError as error:
            raise error.within(f"{field}[{i}]") from None
        role = ROLE_NAMES.get(role, role)
        if role not in ROLES:
            problem = f"must be one of {ROLES}, not {role[:80]!r}."
            raise RecordError(problem, f"{field}[{i}].{names[0]}")
        messages.append({"role": role, "content": content.strip()})
    return messages


def as_records(value):
    """A list of objects that was stored as an object of lists of one length."""
    if isinstance(value, dict) and value:
        columns = list(value.values())
        if all(isinstance(c, list) and len(c) == len(columns[0]) for c in columns):
            rows = zip(*columns, strict=True)
            return [dict(zip(value, items, strict=True)) for items in rows]
    return value


def is_texts(value) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def vote(row: dict, field: str) -> str:
    """0, 1 or 2, as a number or as text, is "tie", "a" or "b"."""
    value = row.get(field)
    if isinstance(value, bool) or str(value) not in ("0", "1", "2"):
        raise RecordError(f"must be 0, 1 or 2, not {str(value)[:80]!r}.", field)
    return ("tie", "a", "b")[int(value)]


def number(row: dict, field: str) -> float:
    value = row.get(field)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RecordError(f"must be a number, not {kind_of(value)}.", field)
    return value


def first_of(row: dict, names: Sequence[str]) -> str:
    """The first of `names` that the row has."""
    found = next((name for name in names if row.get(name) is not None), None)
    if found is None:
        raise RecordError(f"is missing, as are {', '.join(names[1:])}.", names[0])
    return found
