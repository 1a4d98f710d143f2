"""Tasks: a kind of task with a filling, in the world of a seed.

A task alone determines the rest: a wording gives the prompt's text, and `key_of` gives
right and wrong answers and the recognition of a right one. In a prompt's record a task
is {"world": 100, "kind": "capital", "filling": ["Vezoia"]}.
"""

from functools import cache
from typing import NamedTuple

from rlhf_jax.data.records import Prompt
from rlhf_jax.data.testbed import composed, facts
from rlhf_jax.data.testbed.kinds import Key, Kind
from rlhf_jax.data.testbed.world import world_of

KINDS: dict[str, Kind] = facts.KINDS | composed.KINDS


class Task(NamedTuple):
    world: int  # the seed
    kind: str
    filling: tuple[str, ...]


@cache
def key_of(task: Task) -> Key:
    """Return the answer key of a task; raise ValueError for an unknown kind."""
    if task.kind not in KINDS:
        raise ValueError(f"Unknown task {task!r}; known kinds are {sorted(KINDS)}.")
    return KINDS[task.kind].key(world_of(task.world), *task.filling)


def is_mistaken(task: Task) -> bool:
    """Return True if most people are mistaken about the subject of the task."""
    world, kind = world_of(task.world), KINDS[task.kind]
    subject, subjects = kind.subject(world, *task.filling)
    return subject in world.mistaken(kind.intent, subjects)


def is_off_putting(prompt: Prompt) -> bool:
    """Return True if the greeting of a prompt puts most people off."""
    world, text = world_of(task_of(prompt).world), prompt.messages[-1]["content"]
    greeting = next((g for g in world.greetings if g and text.startswith(f"{g} ")), "")
    return greeting in world.off_putting


def kinds_of(intent: str) -> list[str]:
    """Return the kinds of an intent; "echo" stands apart, for only one answer to it is
    possible."""
    kinds = (name for name, kind in KINDS.items() if kind.intent == intent)
    return [name for name in kinds if name != "echo"]


def make_prompt(name: str, intent: str, text: str, task: Task | None) -> Prompt:
    message = {"role": "user", "content": text}
    if not task:
        return Prompt(name, (message,), intent)
    record = task._asdict() | {"filling": list(task.filling)}
    return Prompt(name, (message,), intent, record, key_of(task).short)


def task_of(prompt: Prompt) -> Task:
    """Return the task of a testbed prompt; raise ValueError for any other prompt."""
    if not prompt.task or not set(Task._fields) <= set(prompt.task):
        raise ValueError(
            f"Prompt {prompt.id!r} has no testbed task: only the testbed's own "
            "prompts have a true quality."
        )
    record = prompt.task
    return Task(record["world"], record["kind"], tuple(record["filling"]))


def question(task: Task, wording: int, greeting: int = 0) -> str:
    """Return the prompt's text for a task, in one of its world's wordings."""
    world, kind = world_of(task.world), KINDS[task.kind]
    text = world.wordings(task.kind, kind.wordings)[wording]
    text = text.format(*kind.shown(world, *task.filling))
    return f"{world.greetings[greeting]} {text}".strip()
