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

from rlhf_jax.data import fields
from rlhf_jax.data.json_lines import RecordError
from rlhf_jax.data.records import Comparison, Prompt, prompt_of, read_records


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


class Pair(NamedTuple):
    """Two responses that wait for a comparison, each with how it was generated."""

    prompt: Prompt
    response_a: str
    response_b: str
    settings_a: dict[str, Any] | None = None
    settings_b: dict[str, Any] | None = None


def make_tasks(
    pairs: Sequence[Pair],
    known: Sequence[Comparison],
    *,
    known_share: float,
    repeat_share: float,
    seed: int,
) -> list[Task]:
    """The queue: the pairs, tasks with a known answer, and repeats, well mixed.

    Args:
        known: comparisons whose preference, "a" or "b", is certain.
        known_share: so many tasks with a known answer as this share of the pairs.
        repeat_share: so many repeats, likewise; at most 0.5. A repeat stands at least
            half a queue behind its original.

    Raises:
        ValueError: a share is out of range, or `known` is too few or has a tie.
    """
    if not 0 <= repeat_share <= 0.5:
        raise ValueError(f"{repeat_share=} must be from 0 to 0.5.")
    if known_share < 0:
        raise ValueError(f"{known_share=} must not be negative.")
    num_known = round(known_share * len(pairs))
    if num_known > len(known):
        raise ValueError(
            f"{known_share=} of {len(pairs)} pairs asks for {num_known} comparisons "
            f"with a known answer; there are {len(known)}."
        )
    if any(comparison.preference == "tie" for comparison in known):
        raise ValueError("A comparison with a known answer must not be a tie.")
    rng = np.random.default_rng([seed, zlib.crc32(b"annotation tasks")])

    fresh = [Task("", *pair[:3], "a", *pair[3:]) for pair in pairs]
    for index in rng.choice(len(known), num_known, replace=False):
        c = known[index]
        fresh.append(
            Task(
                "",
                c.prompt,
                c.response_a,
                c.response_b,
                "a",
                known_answer=c.preference,
            )
        )
    order = rng.permutation(len(fresh))
    fresh = [
        dataclasses.replace(fresh[i], shown_first="ab"[rng.integers(2)]) for i in order
    ]

    half = len(fresh) / 2
    first_half = [i for i in range(int(half)) if not fresh[i].known_answer]
    num_repeats = min(round(repeat_share * len(pairs)), len(first_half))
    repeated = np.sort(rng.choice(first_half, num_repeats, replace=False)).astype(int)
    # (place in the queue, index of the task, whether it is the repeat)
    places = [(float(i), i, False) for i in range(len(fresh))]
    places += [(rng.uniform(i + half, len(fresh)), i, True) for i in repeated.tolist()]
    ids = {}
    queue = []
    for number, (_, i, is_repeat) in enumerate(sorted(places), start=1):
        task = dataclasses.replace(fresh[i], id=f"task-{number:06d}")
        if is_repeat:
            other = "b" if task.shown_first == "a" else "a"
            task = dataclasses.replace(task, shown_first=other, repeat_of=ids[i])
        else:
            ids[i] = task.id
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
