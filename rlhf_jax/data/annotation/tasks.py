"""Annotation tasks: two responses to a prompt, for people to compare.

Among the fresh tasks stand two kinds that measure the annotators, and that nobody who
annotates can tell from the others: tasks whose answer is known, and repeats, which are
tasks that the same annotator has seen before, now in the other order.
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

GUIDELINE = Path(__file__).parent / "guideline.md"  # what annotators are told


@dataclasses.dataclass(frozen=True)
class Task:
    """One line of tasks.jsonl; the lines stand in the order of the queue."""

    id: str
    prompt: Prompt
    response_a: str
    response_b: str
    shown_first: str  # "a" or "b": which response is shown as number 1
    settings_a: dict[str, Any] | None = None  # how it was generated
    settings_b: dict[str, Any] | None = None
    known_answer: str = ""  # "a" or "b"; "": nobody knows
    repeat_of: str = ""  # the id of the task that this one repeats
    # What `records.Response` says of each; annotators are shown the texts alone.
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
        both = (self.response_a, self.response_b)
        return both if self.shown_first == "a" else both[::-1]

    def seen(self, choice: str) -> str:
        """A choice among the shown ("1", "2", "tie") as one of "a", "b", "tie"."""
        first, second = "ab" if self.shown_first == "a" else "ba"
        return {"1": first, "2": second, "tie": "tie"}[choice]


class Candidates(NamedTuple):
    """Two responses to be compared, each with how it was generated."""

    prompt: Prompt
    a: Response
    b: Response
    settings_a: dict[str, Any] | None = None
    settings_b: dict[str, Any] | None = None


def check_shares(known_share: float, repeat_share: float) -> None:
    """Raises ValueError for shares that `make_tasks` does not take."""
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
    """The queue: the pairs, tasks with a known answer, and repeats, well mixed.

    Pairs of equal or empty responses are no tasks: there is nothing to judge.

    Args:
        known: comparisons whose preference, "a" or "b", is certain.
        known_share: so many tasks with a known answer as this share of the pairs, as
            far as `known` goes.
        repeat_share: so many repeats, likewise; at most 0.5. A repeat stands at least
            half a queue behind its original.

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
    # (place in the queue, index of the task, whether it is the repeat)
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
    """The tasks of a file by their id, in the order of the queue.

    Raises:
        RecordError: a line is broken, an id stands twice, or a repeat has no original.
    """
    tasks = {}
    for task in read_records(path, Task):
        if task.id in tasks:
            raise RecordError(f"{path} has two tasks with the id {task.id!r}.")
        if task.repeat_of and task.repeat_of not in tasks:
            raise RecordError(
                f"{path}: task {task.id!r} repeats {task.repeat_of!r}, which does not "
                "stand before it."
            )
        tasks[task.id] = task
    return tasks


def read_known(path: str | Path) -> list[Comparison]:
    """Comparisons whose answer is certain.

    Raises:
        FileNotFoundError, RecordError: as `read_records`; or one is a tie.
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
    """The conversation as one text, for tools that show one."""
    if len(prompt.messages) == 1:
        return prompt.messages[0]["content"]
    return "\n\n".join(f"{m['role'].title()}: {m['content']}" for m in prompt.messages)
