"""The layouts in which preference sets are published, each to our comparisons.

| layout | fields |
|---|---|
| dialogues | chosen, rejected: text with Human: and Assistant: marks (hh-rlhf) |
| text | prompt (or instruction, input), chosen, rejected: text |
| messages | chosen, rejected: lists of messages; prompt: a field, or in both lists |
| scored | prompt, completions with scores (UltraFeedback), or responses and scores |
| ranked | instruction, input, output: texts, the best first (LLaMA-Factory) |
| llmbar | input, output_1, output_2, label: 1 or 2 |
| pandalm | instruction, input, response1, response2, annotator1..: 0 tie, 1, 2 |
| qa_feedback | question, passages, prediction 1.., preference: 0 tie, 1, 2 |

`score_chosen` and `score_rejected` beside a pair make it a tie where they are equal. A
prompt's id is a hash of its messages, so that equal prompts meet in any order of files.
A field that is missing or of a wrong type is a bad record; a pair that is well formed
but no comparison is left out, and counted by reason. Texts are stripped of white space.
"""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from rlhf_jax.data.reading import fields
from rlhf_jax.data.reading.json_lines import RecordError, kind_of
from rlhf_jax.data.reading.message_fields import (
    as_records,
    first_of,
    marked_turns,
    message_list,
    number,
    prompt_messages,
    vote,
)
from rlhf_jax.data.records import Comparison, Message, Prompt, check_version

# A field that only this layout has.
MARKS = {
    "completions": "scored",
    "responses": "scored",
    "output_1": "llmbar",
    "response1": "pandalm",
    "prediction 1": "qa_feedback",
}
Outcome = Comparison | str  # or why the pair is left out


def comparisons_of(row: dict, layout: str = "") -> tuple[list[Comparison], Counter]:
    """The comparisons of a row, and how many pairs were left out, by reason.

    Args:
        layout: a key of LAYOUTS; "": found from the fields.

    Raises:
        RecordError: a field is missing or of a wrong type, or no layout has them.
        ValueError: `layout` is unknown.
    """
    layout = layout or detect(row)
    if layout not in LAYOUTS:
        raise ValueError(f"{layout=} is unknown; there are: {', '.join(LAYOUTS)}.")
    outcomes = list(LAYOUTS[layout](row))
    kept = [c for c in outcomes if isinstance(c, Comparison)]
    return kept, Counter(reason for reason in outcomes if isinstance(reason, str))


def detect(row: dict) -> str:
    """The layout that has these fields."""
    if "chosen" in row and "rejected" in row:
        if not isinstance(row["chosen"], str):
            return "messages"
        has_prompt = {"prompt", "conversations", "instruction", "question"} & set(row)
        return "text" if has_prompt else "dialogues"
    for field, layout in MARKS.items():
        if field in row:
            return layout
    if "instruction" in row and isinstance(row.get("output"), list):
        return "ranked"
    raise RecordError(
        f"no known layout has the fields {', '.join(sorted(row))[:200]}; "
        f"set data.layout to one of: {', '.join(LAYOUTS)}."
    )


def prompt_in(row: dict, intent_field: str) -> Prompt:
    """The prompt of a row, in our own layout or in another's.

    Raises:
        RecordError: a field is missing or of a wrong type, or the user is not the last.
    """
    if "id" in row and "messages" in row:
        check_version(row)
        return Prompt.from_json(row)
    messages = prompt_messages(row)
    if messages[-1]["role"] != "user":
        raise RecordError("must end with the user.", "prompt")
    return hashed_prompt(messages, fields.text(row, intent_field, default=""))


def hashed_prompt(messages: Sequence[Message], intent: str = "") -> Prompt:
    """A prompt whose id says what stands in it."""
    digest = hashlib.sha256(json.dumps(list(messages)).encode()).hexdigest()
    return Prompt(digest[:16], tuple(messages), intent)


def _dialogues(row: dict) -> Iterator[Outcome]:
    chosen, rejected = (
        marked_turns(fields.text(row, f)) for f in ("chosen", "rejected")
    )
    yield _of_whole_dialogues(chosen, rejected, _preference(row))


def _text_pair(row: dict) -> Iterator[Outcome]:
    pair = fields.text(row, "chosen"), fields.text(row, "rejected")
    yield _comparison(prompt_messages(row), *pair, _preference(row))


def _message_lists(row: dict) -> Iterator[Outcome]:
    chosen, rejected = message_list(row, "chosen"), message_list(row, "rejected")
    if chosen[0]["role"] == "assistant" or len(chosen) == len(rejected) == 1:
        prompt = prompt_messages(row)
        chosen, rejected = prompt + chosen, prompt + rejected
    yield _of_whole_dialogues(chosen, rejected, _preference(row))


def _scored(row: dict) -> Iterator[Outcome]:
    field = "completions" if "completions" in row else "responses"
    several = as_records(row.get(field))
    if not isinstance(several, list):
        raise RecordError(f"must be a list, not {kind_of(several)}.", field)
    if all(isinstance(item, dict) for item in several):
        texts, scores = [], []
        for i, item in enumerate(several):
            try:
                name = first_of(item, ("response", "completion", "text", "content"))
                texts.append(fields.text(item, name))
                name = first_of(item, ("overall_score", "score", "rating", "reward"))
                scores.append(number(item, name))
            except RecordError as error:
                raise error.within(f"{field}[{i}]") from None
    else:
        texts = [fields.text({field: item}, field) for item in several]
        name = first_of(row, ("scores", "rewards", "ratings"))
        if not isinstance(row[name], list) or len(row[name]) != len(texts):
            raise RecordError(f"must give each of {len(texts)} {field} a number.", name)
        scores = [number({name: item}, name) for item in row[name]]
    prompt = prompt_messages(row)
    scored = zip(texts, scores, strict=True)
    for (a, score_a), (b, score_b) in itertools.combinations(scored, 2):
        preference = "tie" if score_a == score_b else "a" if score_a > score_b else "b"
        yield _comparison(prompt, a, b, preference)


def _ranked(row: dict) -> Iterator[Outcome]:
    texts = row.get("output")
    if not isinstance(texts, list):
        raise RecordError(f"must be a list, not {kind_of(texts)}.", "output")
    texts = [fields.text({"output": item}, "output") for item in texts]
    prompt = prompt_messages(row)
    for better, worse in itertools.combinations(texts, 2):
        yield _comparison(prompt, better, worse, "a")


def _llmbar(row: dict) -> Iterator[Outcome]:
    prompt = [{"role": "user", "content": fields.text(row, "input").strip()}]
    pair = fields.text(row, "output_1"), fields.text(row, "output_2")
    yield _comparison(prompt, *pair, vote(row, "label"))


def _pandalm(row: dict) -> Iterator[Outcome]:
    prompt = prompt_messages(row)
    pair = fields.text(row, "response1"), fields.text(row, "response2")
    voters = [name for name in row if name.startswith("annotator")]
    for name in voters or ["annotator1"]:
        yield _comparison(prompt, *pair, vote(row, name), annotator=name)


def _qa_feedback(row: dict) -> Iterator[Outcome]:
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
    for pair, value in zip(pairs, values, strict=True):
        preference = vote({"preference": value}, "preference")
        yield _comparison([{"role": "user", "content": text}], *pair, preference)


LAYOUTS: dict[str, Callable[[dict], Iterator[Outcome]]] = {
    "dialogues": _dialogues,
    "text": _text_pair,
    "messages": _message_lists,
    "scored": _scored,
    "ranked": _ranked,
    "llmbar": _llmbar,
    "pandalm": _pandalm,
    "qa_feedback": _qa_feedback,
}


def _of_whole_dialogues(
    chosen: list[Message], rejected: list[Message], preference: str
) -> Outcome:
    """Two dialogues that share all but their last message."""
    if any(not side or side[-1]["role"] != "assistant" for side in (chosen, rejected)):
        return "no response at the end"
    if chosen[:-1] != rejected[:-1]:
        return "prompts differ"
    return _comparison(
        chosen[:-1], chosen[-1]["content"], rejected[-1]["content"], preference
    )


def _comparison(
    prompt: Sequence[Message], a: str, b: str, preference: str, *, annotator: str = ""
) -> Outcome:
    a, b = a.strip(), b.strip()
    roles = [message["role"] for message in prompt]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if not turns or not prompt[-1]["content"].strip():
        return "empty prompt"
    if (
        turns[0] != "user"
        or turns[-1] != "user"
        or any(role == after for role, after in itertools.pairwise(turns))
    ):
        return "roles do not alternate"
    if not a or not b:
        return "empty response"
    if a == b:
        return "identical responses"
    if not preference:
        return "scores contradict the choice"
    return Comparison(hashed_prompt(prompt), a, b, preference, annotator)


def _preference(row: dict) -> str:
    """Of a pair with chosen first; "" where its scores say otherwise."""
    if row.get("score_chosen") is None or row.get("score_rejected") is None:
        return "a"
    chosen, rejected = (number(row, f"score_{x}") for x in ("chosen", "rejected"))
    return "tie" if chosen == rejected else "a" if chosen > rejected else ""
