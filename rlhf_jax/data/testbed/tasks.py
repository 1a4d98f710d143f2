"""Tasks of the testbed: kinds of task over eight intents.

A task is a tuple of strings, (kind, *filling), such as ("capital", "France"). The task
alone determines the rest: a wording gives the prompt's text, and `key_of` gives right
and wrong answers, helpful details, and the recognition of a right answer. In a prompt's
record the task is {"kind": "capital", "filling": ["France"]}.
"""

from functools import cache

from rlhf_jax.data.records import Prompt
from rlhf_jax.data.testbed import facts, fiction, reasoning
from rlhf_jax.data.testbed.kinds import Key, Kind
from rlhf_jax.data.testbed.tables import GREETINGS

INTENTS = (
    "language",
    "translation",
    "open_question",
    "writing",
    "role_play",
    "professional",
    "mathematics",
    "logic",
)


KINDS: dict[str, Kind] = facts.KINDS | fiction.KINDS | reasoning.KINDS


@cache
def key_of(task: tuple[str, ...]) -> Key:
    """Return the answer key of a task; raise ValueError for an unknown kind."""
    if not task or task[0] not in KINDS:
        raise ValueError(f"Unknown task {task!r}; known kinds are {sorted(KINDS)}.")
    kind, *filling = task
    return KINDS[kind].key(*filling)


def kinds_of(intent: str) -> list[str]:
    return [name for name, kind in KINDS.items() if kind.intent == intent]


def make_prompt(
    name: str, intent: str, text: str, task: tuple[str, ...] | None
) -> Prompt:
    message = {"role": "user", "content": text}
    if not task:
        return Prompt(name, (message,), intent)
    record = {"kind": task[0], "filling": list(task[1:])}
    return Prompt(name, (message,), intent, record, key_of(task).short)


def task_of(prompt: Prompt) -> tuple[str, ...]:
    """Return the task of a testbed prompt; raise ValueError for any other prompt."""
    if not prompt.task or "kind" not in prompt.task:
        raise ValueError(
            f"Prompt {prompt.id!r} has no testbed task: only the testbed's own "
            "prompts have a true quality."
        )
    return (prompt.task["kind"], *prompt.task["filling"])


def question(task: tuple[str, ...], wording: int, greeting: int = 0) -> str:
    """Return the prompt's text for a task, in one of the wordings of its kind."""
    kind, *filling = task
    text = KINDS[kind].wordings[wording].format(*KINDS[kind].shown(*filling))
    return f"{GREETINGS[greeting]} {text}".strip()
