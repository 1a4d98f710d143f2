"""Annotation tasks: two responses to a prompt, for people to compare.

Two kinds of task measure the annotators, who cannot tell them from fresh tasks: tasks
whose answer is known, and repeats, which show a task that the same annotator has seen
before with the responses in the other order.
"""

import dataclasses
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rlhf_jax.data.reading import fields
from rlhf_jax.data.reading.json_lines import RecordError
from rlhf_jax.data.records import (
    Comparison,
    Prompt,
    Response,
    fields_of,
    prompt_of,
    read_records,
    response_of,
    sampled_fields,
)

GUIDELINE = Path(__file__).parent / "guideline.md"  # instructions for annotators


@dataclasses.dataclass(frozen=True)
class Task:
    """A line of tasks.jsonl; the lines are in the order of the queue."""

    id: str
    prompt: Prompt
    response_a: str
    response_b: str
    shown_first: str  # "a" or "b", the response shown as number 1
    settings_a: dict[str, Any] | None = None  # generation settings of response a
    settings_b: dict[str, Any] | None = None  # generation settings of response b
    known_answer: str = ""  # "a" or "b"; "" where the answer is unknown
    repeat_of: str = ""  # id of the original of a repeat, else ""
    # Fields of each `records.Response`; annotators see the texts alone.
    ended_a: bool = True
    ended_b: bool = True
    tokens_a: list[int] | None = None
    tokens_b: list[int] | None = None

    @classmethod
    def from_json(cls, record: dict) -> "Task":
        return cls(
            fields.text(record, "id"),
            prompt_of(record),
            fields.text(record, "response_a"),
            fields.text(record, "response_b"),
            fields.choice(record, "shown_first", ("a", "b")),
            fields.optional_object(record, "settings_a"),
            fields.optional_object(record, "settings_b"),
            fields.choice(record, "known_answer", ("", "a", "b"), default=""),
            fields.text(record, "repeat_of", default=""),
            **sampled_fields(record),
        )

    @property
    def shown(self) -> tuple[str, str]:
        """The two responses in the order in which they are shown."""
        responses = (self.response_a, self.response_b)
        return responses if self.shown_first == "a" else responses[::-1]

    def seen(self, choice: str) -> str:
        """Convert a choice on the screen ("1", "2", "tie") to "a", "b" or "tie"."""
        first, second = "ab" if self.shown_first == "a" else "ba"
        return {"1": first, "2": second, "tie": "tie"}[choice]


class Candidates(NamedTuple):
    """Two responses to compare, each with its generation settings."""

    prompt: Prompt
    a: Response
    b: Response
    settings_a: dict[str, Any] | None = None
    settings_b: dict[str, Any] | None = None


def check_shares(known_share: float, repeat_share: float) -> None:
    """Raise ValueError for shares that `make_tasks` does not accept."""
    if not 0 <= known_share <= 1:
        raise ValueError(f"{known_share=} must be from 0 to 1.")
    if not 0 <= repeat_share <= 0.5:
        raise ValueError(f"{repeat_share=} must be from 0 to 0.5.")


def make_tasks(
    pairs: Sequence[Candidates],
    known: Sequence[Comparison],
    *,
    known_share: float,
    repeat_share: float,
    seed: int,
) -> list[Task]:
    """Make the queue: the pairs, tasks with a known answer, and repeats, shuffled.

    Pairs with equal responses or an empty one are dropped: they cannot be judged.

    Args:
        known: comparisons whose preference, "a" or "b", is certain.
        known_share: the number of tasks with a known answer over the number of pairs;
            `known` may hold fewer.
        repeat_share: the number of repeats over the number of pairs, at most 0.5. A
            repeat is at least half a queue after its original.

    Raises:
        ValueError: a share is out of range, or no pair is left.
    """
    check_shares(known_share, repeat_share)
    pairs = [
        pair
        for pair in pairs
        if pair.a.text != pair.b.text and pair.a.text.strip() and pair.b.text.strip()
    ]
    if not pairs:
        raise ValueError("No prompt has two responses that differ.")
    rng = np.random.default_rng([seed, zlib.crc32(b"annotation tasks")])
    num_known = min(round(known_share * len(pairs)), len(known))
    sure = [known[i] for i in rng.choice(len(known), num_known, replace=False)]
    fresh = [(pair, "") for pair in pairs]
    fresh += [
        (Candidates(c.prompt, response_of(c, "a"), response_of(c, "b")), c.preference)
        for c in sure
    ]
    rng.shuffle(fresh)
    first = rng.choice(["a", "b"], len(fresh)).tolist()

    half = len(fresh) / 2
    repeatable = [i for i in range(int(half)) if not fresh[i][1]]
    num_repeats = min(round(repeat_share * len(pairs)), len(repeatable))
    # Each entry is (place in the queue, index of the task, True for its repeat).
    places = [(float(i), i, False) for i in range(len(fresh))]
    for i in map(int, rng.choice(repeatable, num_repeats, replace=False)):
        places.append((rng.uniform(i + half, len(fresh)), i, True))

    queue, ids = [], {}
    for number, (_, i, is_repeat) in enumerate(sorted(places), start=1):
        pair, known_answer = fresh[i]
        task = Task(
            id=f"task-{number:06d}",
            prompt=pair.prompt,
            shown_first="ba"["ab".index(first[i])] if is_repeat else first[i],
            settings_a=pair.settings_a,
            settings_b=pair.settings_b,
            known_answer=known_answer,
            repeat_of=ids.get(i, ""),
            **fields_of(pair.a, pair.b),
        )
        ids.setdefault(i, task.id)
        queue.append(task)
    return queue


def read_tasks(path: str | Path) -> dict[str, Task]:
    """Read the tasks of a file by id, in the order of the queue.

    Raises:
        RecordError: a line is broken, an id occurs twice, or a repeat's original does
            not precede the repeat.
    """
    tasks = {}
    for task in read_records(path, Task):
        if task.id in tasks:
            raise RecordError(f"{path} has two tasks with the id {task.id!r}.")
        if task.repeat_of and task.repeat_of not in tasks:
            raise RecordError(
                f"{path}: task {task.id!r} repeats {task.repeat_of!r}, which does not "
                "precede it."
            )
        tasks[task.id] = task
    return tasks


def read_known(path: str | Path) -> list[Comparison]:
    """Read comparisons whose answer is certain.

    Raises:
        FileNotFoundError, RecordError: as `read_records`; or a comparison is a tie.
    """
    known = read_records(path, Comparison)
    for comparison in known:
        if comparison.preference == "tie":
            raise RecordError(
                f"{path}: a known answer must not be a tie, as it is for the prompt "
                f"{comparison.prompt.id!r}."
            )
    return known


def transcript(prompt: Prompt) -> str:
    """Join the conversation into one text, for tools that show a single text."""
    if len(prompt.messages) == 1:
        return prompt.messages[0]["content"]
    return "\n\n".join(f"{m['role'].title()}: {m['content']}" for m in prompt.messages)
