"""Readers of a row, one for each layout (layouts.py lists the fields of each)."""

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rlhf_jax.data.reading import fields
from rlhf_jax.data.reading.json_lines import RecordError, kind_of
from rlhf_jax.data.reading.message_fields import (
    Row,
    answer_text,
    as_records,
    first_of,
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
    check_version,
    prompt_id,
)

ANSWERS = ("completion", "output", "response")
# A record, or the reason why the row, or a pair in the row, is left out.
Outcome = Comparison | Dialogue | Prompt | str


def hashed_prompt(messages: Sequence[Message], intent: str = "") -> Prompt:
    """Make a prompt whose id is the hash of its messages."""
    return Prompt(prompt_id(messages), tuple(messages), intent)


def for_checkers(row: Row) -> dict[str, Any]:
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
    chosen, rejected = (
        with_context(row, marked_turns(text)) for text in texts.values()
    )
    yield _of_whole_dialogues(chosen, rejected, _preference(row))


def _text_pair(row: Row) -> Iterator[Outcome]:
    pair = answer_text(row, "chosen"), answer_text(row, "rejected")
    if all(map(starts_with_mark, pair)):  # both texts hold the prompt as well
        yield from _dialogues(row)
    else:
        yield _comparison(prompt_messages(row), *pair, _preference(row))


def _message_pairs(row: Row) -> Iterator[Outcome]:
    chosen, rejected = message_list(row, "chosen"), message_list(row, "rejected")
    if chosen[0]["role"] == "assistant" or len(chosen) == len(rejected) == 1:
        prompt = prompt_messages(row)
        chosen, rejected = prompt + chosen, prompt + rejected
    else:
        chosen, rejected = with_context(row, chosen), with_context(row, rejected)
    yield _of_whole_dialogues(chosen, rejected, _preference(row))


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
        prompt = dataclasses.replace(
            comparison.prompt, id=prompt_id(messages), messages=tuple(messages)
        )
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
        kept = for_checkers(row)
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
    yield _prompt(dataclasses.replace(prompt, **for_checkers(row)))


LAYOUTS: dict[str, Callable[[Row], Iterator[Outcome]]] = {
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
