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
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from rlhf_jax.data.reading import fields
from rlhf_jax.data.reading.json_lines import RecordError, kind_of
from rlhf_jax.data.reading.message_fields import (
    CONTEXT,
    PROMPTS,
    ROLE_NAMES,
    Row,
    answer_text,
    as_records,
    first_of,
    is_message,
    marked_turns,
    message_list,
    number,
    prompt_messages,
    starts_with_mark,
    vote,
    with_context,
)
from rlhf_jax.data.records import (
    PROMPT_FIELDS,
    Comparison,
    Dialogue,
    Message,
    Prompt,
    Record,
    check_version,
    prompt_id,
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
ANSWERS = ("completion", "output", "response")
# A record, or the reason why the row, or a pair in the row, is left out.
Outcome = Comparison | Dialogue | Prompt | str


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
    prompt = dataclasses.replace(prompt, **_for_checkers(row))
    return RowRecords([prompt], Counter(), row.unused)


def hashed_prompt(messages: Sequence[Message], intent: str = "") -> Prompt:
    """Make a prompt whose id is the hash of its messages."""
    return Prompt(prompt_id(messages), tuple(messages), intent)


def _for_checkers(row: Row) -> dict:
    """Read the fields of a prompt's row that only checkers of answers read: the
    reference, and all fields that nothing has read before."""
    reference = fields.text_or_number(row, "reference")
    names = [x for x in row if x not in row.read and x not in PROMPT_FIELDS]
    return {"reference": reference, "extra": {name: row[name] for name in names}}


def _dialogues(row: Row) -> Iterator[Outcome]:
    texts = {name: fields.text(row, name) for name in ("chosen", "rejected")}
    for name, text in texts.items():
        if text.strip() and not starts_with_mark(text):
            problem = "has no Human: mark, and the row no prompt in another field."
            raise RecordError(problem, name)
    pair = [with_context(row, marked_turns(text)) for text in texts.values()]
    yield _of_whole_dialogues(*pair, _preference(row))


def _text_pair(row: Row) -> Iterator[Outcome]:
    pair = answer_text(row, "chosen"), answer_text(row, "rejected")
    if all(map(starts_with_mark, pair)):  # both texts hold the prompt as well
        yield from _dialogues(row)
    else:
        yield _comparison(prompt_messages(row), *pair, _preference(row))


def _message_pairs(row: Row) -> Iterator[Outcome]:
    pair = [message_list(row, "chosen"), message_list(row, "rejected")]
    chosen, rejected = pair
    if chosen[0]["role"] == "assistant" or len(chosen) == len(rejected) == 1:
        prompt = prompt_messages(row)
        pair = [prompt + chosen, prompt + rejected]
    else:
        pair = [with_context(row, messages) for messages in pair]
    yield _of_whole_dialogues(*pair, _preference(row))


def _scored(row: Row) -> Iterator[Outcome]:
    field = "completions" if "completions" in row else "responses"
    items = as_records(row.get(field))
    if not isinstance(items, list):
        raise RecordError(f"must be a list, not {kind_of(items)}.", field)
    if all(isinstance(item, dict) for item in items):
        texts, scores = [], []
        for i, item in enumerate(items):
            try:
                name = first_of(item, ("response", "completion", "text", "content"))
                texts.append(fields.text(item, name))
                name = first_of(item, ("overall_score", "score", "rating", "reward"))
                scores.append(number(item, name))
            except RecordError as error:
                raise error.within(f"{field}[{i}]") from None
    else:
        texts = [fields.text({field: item}, field) for item in items]
        name = first_of(row, ("scores", "rewards", "ratings"))
        if not isinstance(row[name], list) or len(row[name]) != len(texts):
            raise RecordError(f"must give each of {len(texts)} {field} a number.", name)
        scores = [number({name: item}, name) for item in row[name]]
    prompt = prompt_messages(row)
    scored = zip(texts, scores, strict=True)
    for (a, score_a), (b, score_b) in itertools.combinations(scored, 2):
        preference = "tie" if score_a == score_b else "a" if score_a > score_b else "b"
        yield _comparison(prompt, a, b, preference)


def _ranked(row: Row) -> Iterator[Outcome]:
    texts = row.get("output")
    if not isinstance(texts, list):
        raise RecordError(f"must be a list, not {kind_of(texts)}.", "output")
    texts = [fields.text({"output": item}, "output") for item in texts]
    prompt = prompt_messages(row)
    for better, worse in itertools.combinations(texts, 2):
        yield _comparison(prompt, better, worse, "a")


def _llmbar(row: Row) -> Iterator[Outcome]:
    prompt = prompt_messages(row, ("input",))
    pair = fields.text(row, "output_1"), fields.text(row, "output_2")
    yield _comparison(prompt, *pair, vote(row, "label"))


def _pandalm(row: Row) -> Iterator[Outcome]:
    prompt = prompt_messages(row)
    pair = fields.text(row, "response1"), fields.text(row, "response2")
    names = [name for name in row if re.fullmatch(r"annotator\d+", name)]
    voters = [name for name in names if str(row[name]).strip()]
    if not voters:
        yield "no vote"
    for name in voters:
        yield _comparison(prompt, *pair, vote(row, name), annotator=name)


def _qa_feedback(row: Row) -> Iterator[Outcome]:
    passages = row.get("passages")
    if not isinstance(passages, list):
        raise RecordError(f"must be a list, not {kind_of(passages)}.", "passages")
    for i, passage in enumerate(passages):
        if not isinstance(passage, list) or not all(
            isinstance(p, str) for p in passage
        ):
            raise RecordError("must be a list of texts.", f"passages[{i}]")
    context = "\n\n".join(" ".join(passage) for passage in passages)
    text = f"{context}\n\n{fields.text(row, 'question')}"
    texts = [fields.text(row, name) for name in row if name.startswith("prediction ")]
    pairs = list(itertools.combinations(texts, 2))
    values = row.get("preference")
    if not isinstance(values, list) or len(values) != len(pairs):
        raise RecordError(f"must give each of {len(pairs)} pairs a vote.", "preference")
    prompt = with_context(row, [{"role": "user", "content": text}])
    for pair, value in zip(pairs, values, strict=True):
        if value is None:
            yield "no vote"
        else:
            preference = vote({"preference": value}, "preference")
            yield _comparison(prompt, *pair, preference)


def _own_comparison(row: Row) -> Iterator[Outcome]:
    check_version(row)
    comparison = Comparison.from_json(row)
    messages = with_context(row, list(comparison.prompt.messages))
    if messages != list(comparison.prompt.messages):
        names = {"id": prompt_id(messages), "messages": tuple(messages)}
        prompt = dataclasses.replace(comparison.prompt, **names)
        comparison = dataclasses.replace(comparison, prompt=prompt)
    yield comparison


def _messages(row: Row) -> Iterator[Outcome]:
    check_version(row)
    name = first_of(row, ("messages", "conversations"))
    messages = with_context(row, message_list(row, name))
    intent = fields.text(row, "intent", default="")
    if messages[-1]["role"] == "assistant":
        yield _dialogue(messages, intent)
    elif messages[-1]["role"] == "user":
        task = fields.optional_object(row, "task")
        name = fields.text(row, "id", default="") or prompt_id(messages)
        kept = _for_checkers(row)
        yield _prompt(Prompt(name, tuple(messages), intent, task, **kept))
    else:
        raise RecordError("must end with the assistant, or with the user.", name)


def _completion(row: Row) -> Iterator[Outcome]:
    name = first_of(row, ANSWERS)
    if str(dict.get(row, "label")).lower() in ("true", "false", "0", "1", "0.0", "1.0"):
        raise RecordError(
            "marks a single response as good or bad (KTO), which trains nothing here: "
            "keep the good ones, without this field, or pair good and bad as chosen "
            "and rejected.",
            "label",
        )
    if isinstance(row[name], list | dict):
        answer = message_list(row, name)
    else:
        answer = [{"role": "assistant", "content": answer_text(row, name)}]
    yield _dialogue([*prompt_messages(row), *answer])


def _prompt_alone(row: Row) -> Iterator[Outcome]:
    prompt = hashed_prompt(prompt_messages(row))
    yield _prompt(dataclasses.replace(prompt, **_for_checkers(row)))


LAYOUTS: dict[str, Callable[[dict], Iterator[Outcome]]] = {
    "dialogues": _dialogues,
    "text": _text_pair,
    "message_pairs": _message_pairs,
    "scored": _scored,
    "ranked": _ranked,
    "llmbar": _llmbar,
    "pandalm": _pandalm,
    "qa_feedback": _qa_feedback,
    "comparison": _own_comparison,
    "messages": _messages,
    "completion": _completion,
    "prompt": _prompt_alone,
}


def _of_whole_dialogues(
    chosen: list[Message], rejected: list[Message], preference: str
) -> Outcome:
    """Compare two dialogues that share all but their last message."""
    if any(not side or side[-1]["role"] != "assistant" for side in (chosen, rejected)):
        return "no response at the end"
    if chosen[:-1] != rejected[:-1]:
        return "prompts differ"
    if set(chosen[-1]) | set(rejected[-1]) > {"role", "content"}:
        return "a response that calls a tool"
    return _comparison(
        chosen[:-1], chosen[-1]["content"], rejected[-1]["content"], preference
    )


def _dialogue(messages: Sequence[Message], intent: str = "") -> Outcome:
    reason = _unanswerable(messages[:-1])
    if messages[-1]["role"] != "assistant":
        reason = "no response at the end"
    if not messages[-1]["content"].strip():
        reason = reason or "empty response"
    return reason or Dialogue(tuple(messages), intent)


def _prompt(prompt: Prompt) -> Outcome:
    reason = _unanswerable(prompt.messages)
    return reason or prompt


def _unanswerable(prompt: Sequence[Message]) -> str:
    """Return the reason why a prompt cannot be answered, or ""."""
    roles = [message["role"] for message in prompt]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if not turns or not prompt[-1]["content"].strip():
        return "empty prompt"
    in_turn = all(role != after for role, after in itertools.pairwise(turns))
    # An assistant that calls a tool may speak before and after the call.
    uses_tools = "observation" in turns
    if turns[0] != "user" or not (uses_tools or (in_turn and turns[-1] == "user")):
        return "roles do not alternate"
    return ""


def _comparison(
    prompt: Sequence[Message], a: str, b: str, preference: str, *, annotator: str = ""
) -> Outcome:
    a, b = a.strip(), b.strip()
    if reason := _unanswerable(prompt):
        return reason
    if prompt[-1]["role"] != "user":
        return "a response to a tool"
    if not a or not b:
        return "empty response"
    if a == b:
        return "identical responses"
    if not preference:
        return "scores contradict the choice"
    return Comparison(hashed_prompt(prompt), a, b, preference, annotator)


def _preference(row: Row) -> str:
    """Return the preference of a pair with the chosen response first, "" if its scores
    contradict the choice."""
    if row.get("score_chosen") is None or row.get("score_rejected") is None:
        return "a"
    chosen, rejected = (number(row, f"score_{x}") for x in ("chosen", "rejected"))
    return "tie" if chosen == rejected else "a" if chosen > rejected else ""
