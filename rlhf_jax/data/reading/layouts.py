"""Layouts of published data sets, and their conversion to our records.

Comparisons:

| layout | fields |
|---|---|
| dialogues | chosen, rejected: text with Human: and Assistant: marks (hh-rlhf) |
| text | a prompt, chosen, rejected: text |
| message_pairs | chosen, rejected: lists of messages; a prompt, or both hold it |
| scored | a prompt, completions with scores (UltraFeedback), or responses and scores |
| ranked | instruction, input, output: texts, the best first (LLaMA-Factory) |
| llmbar | input, output_1, output_2, label: 1 or 2 |
| pandalm | instruction, input, response1, response2, annotator1..: 0 tie, 1, 2 |
| qa_feedback | question, passages, prediction 1.., preference: 0 tie, 1, 2 |
| comparison | our own (data/records.py) |

Dialogues to imitate, and prompts to answer:

| layout | fields |
|---|---|
| messages | messages, or conversations; a prompt if it ends with the user's (TRL) |
| completion | a prompt, and completion, output or response: text, or messages |
| prompt | a prompt alone |

A prompt is `prompt`, `conversations`, `instruction`, `question` or `input`, text or
messages; `input` follows a text of another name. In every layout the prompt is preceded
by `system` (`system_prompt`, `system_message`) with its `tools`, and by `history`. A
null field counts as absent. Unused fields, also of messages, are counted by name.

A pair with equal `score_chosen` and `score_rejected` is a tie. A prompt's id is a hash
of its messages, so that equal prompts have equal ids in any order of files. A field
that is missing or of a wrong type is a bad record; a row that is well formed but
unusable is left out, and counted by reason. Texts are stripped of white space.
"""

import dataclasses
from collections import Counter
from typing import NamedTuple

from rlhf_jax.data.reading import fields
from rlhf_jax.data.reading.json_lines import RecordError
from rlhf_jax.data.reading.layout_readers import (
    ANSWERS,
    LAYOUTS,
    for_checkers,
    hashed_prompt,
)
from rlhf_jax.data.reading.message_fields import (
    CONTEXT,
    PROMPTS,
    ROLE_NAMES,
    Row,
    is_message,
    prompt_messages,
)
from rlhf_jax.data.records import (
    Comparison,
    Dialogue,
    Prompt,
    Record,
    check_version,
)

# Layouts by a field that no other layout has.
MARKS = {
    "response_a": "comparison",
    "completions": "scored",
    "responses": "scored",
    "output_1": "llmbar",
    "response1": "pandalm",
    "prediction 1": "qa_feedback",
    "messages": "messages",
}


class RowRecords(NamedTuple):
    """The records of a row."""

    records: list[Comparison | Dialogue | Prompt]
    left_out: Counter  # counts of pairs, dialogues or prompts left out, by reason
    unused: set[str]  # names of the row's unused fields


def records_of(row: dict, layout: str = "") -> RowRecords:
    """Convert a row to records.

    Args:
        layout: a key of LAYOUTS; "" detects the layout by the fields.

    Raises:
        RecordError: a field is missing or of a wrong type, or no layout has the fields.
        ValueError: `layout` is unknown.
    """
    row = Row(row)
    name = layout or detect(row)
    if name not in LAYOUTS:
        raise ValueError(f"{layout=} is unknown; there are: {', '.join(LAYOUTS)}.")
    try:
        outcomes = list(LAYOUTS[name](row))
    except RecordError as error:
        looks = _looks(row)
        if not layout or looks in ("", layout):
            raise
        problem = f"{error.problem} The fields look like {looks}, not {layout=}."
        raise RecordError(problem, error.field) from None
    left_out = Counter(reason for reason in outcomes if isinstance(reason, str))
    records = [item for item in outcomes if not isinstance(item, str)]
    return RowRecords(records, left_out, row.unused)


def comparisons_of(row: dict, layout: str = "") -> tuple[list[Comparison], Counter]:
    """Return the comparisons of a row, and counts of pairs left out, by reason.

    Raises:
        RecordError, ValueError: as `records_of`; or the row holds other records.
    """
    read = records_of(row, layout)
    return [as_kind(record, Comparison) for record in read.records], read.left_out


def read_as(row: dict, kind: type[Record]) -> RowRecords:
    """Read the records of one kind in a row, in our own layout or a published one.

    Raises:
        RecordError: as `records_of`; or the row holds no record of this kind.
    """
    row = Row(row)
    if _is_own(row, kind):
        check_version(row)
        return RowRecords([kind.from_json(row)], Counter(), row.unused)
    read = records_of(row)
    records = read.records
    if kind is Dialogue:
        records = [r for r in records if not isinstance(r, Comparison) or _decided(r)]
    return read._replace(records=[as_kind(record, kind) for record in records])


def _is_own(row: Row, kind: type[Record]) -> bool:
    """Return True if a row, with its messages, has the layout of records.py."""
    if set(row) & {"chosen", "rejected", *CONTEXT}:
        return False
    if kind is Comparison:
        return "response_a" in row
    messages = dict.get(row, "messages")
    named = [m for m in messages if is_message(m)] if isinstance(messages, list) else []
    others = any("from" in m or m["role"] in ROLE_NAMES for m in named)
    return messages is not None and not others


def _decided(comparison: Comparison) -> bool:
    """Return True if there is a chosen response that generation did not cut."""
    return comparison.preference != "tie" and comparison.responses[0].ended


def as_kind(record: Comparison | Dialogue | Prompt, kind: type[Record]) -> Record:
    """Return the record as one of another kind: a comparison's prompt, or its prompt
    with the chosen response as a dialogue.

    Raises:
        RecordError: the record holds no record of that kind.
    """
    if isinstance(record, kind):
        return record
    if isinstance(record, Comparison):
        return record.prompt if kind is Prompt else chosen_dialogue(record)
    if kind is Comparison:
        name = type(record).__name__.lower()
        problem = f"is a {name}, not a comparison, which needs chosen and rejected."
        raise RecordError(problem)
    role = "user" if kind is Prompt else "assistant"
    raise RecordError(f"must end with the {role}.", "messages")


def chosen_dialogue(comparison: Comparison) -> Dialogue:
    """Make a dialogue of a comparison's prompt and its chosen response."""
    answer = {"role": "assistant", "content": comparison.chosen}
    return Dialogue((*comparison.prompt.messages, answer))


def detect(row: dict) -> str:
    """Detect the layout with these fields; a null field counts as absent.

    Raises:
        RecordError: no layout has the fields; the message lists the layouts.
    """
    if looks := _looks(Row(row)):
        return looks
    names = ", ".join(sorted(Row(row)))[:200]
    hint = " A text alone does not name its speakers." if "text" in row else ""
    raise RecordError(
        f"no known layout has the fields {names}.{hint} docs/data_formats.md lists "
        f"the fields of each: {', '.join(LAYOUTS)}."
    )


def _looks(row: Row) -> str:
    """Return the layout with these fields, or ""."""
    names = set(row)
    if pair := [dict.get(row, name) for name in ("chosen", "rejected") if name in row]:
        if isinstance(pair[0], list | dict):
            return "message_pairs"
        return "text" if names & set(PROMPTS) else "dialogues"
    for field, layout in MARKS.items():
        if field in names:
            return layout
    has_prompt = bool(names & set(PROMPTS))
    if has_prompt and isinstance(dict.get(row, "output"), list):
        return "ranked"
    if has_prompt and names & set(ANSWERS):
        return "completion"
    if "conversations" in names:
        return "messages"
    return "prompt" if has_prompt else ""


def prompt_in(row: dict, intent_field: str) -> RowRecords:
    """Read the prompt of a row, in our own layout or a published one.

    Raises:
        RecordError: a field is missing or of a wrong type, or the last message is not
            the user's.
    """
    row = Row(row)
    if not set(row) & set(PROMPTS) or {"id", "messages"} <= set(row):
        read = records_of(row)
        if not read.records:
            raise RecordError(f"holds no prompt: {', '.join(read.left_out)}.")
        return read._replace(records=[as_kind(read.records[0], Prompt)])
    messages = prompt_messages(row)
    if messages[-1]["role"] != "user":
        raise RecordError("must end with the user.", "prompt")
    prompt = hashed_prompt(messages, fields.text(row, intent_field, default=""))
    prompt = dataclasses.replace(prompt, **for_checkers(row))
    return RowRecords([prompt], Counter(), row.unused)
