"""Answers: what is said, right or wrong, and the style in which it is said.

A style is a register with its phrases: an opening, a closing, and sentences that say
nothing. The register suits the intent or it does not, whether or not the answer is
right.
"""

from typing import NamedTuple, TypeVar

import numpy as np

from rlhf_jax.data.testbed import stock
from rlhf_jax.data.testbed.tasks import KINDS, Task, key_of
from rlhf_jax.data.testbed.world import world_of

OPENED, CLOSED = 0.7, 0.5  # shares of the answers
PADDED = 0.4  # probability of each further filler, up to:
MOST_FILLERS = 8

Item = TypeVar("Item")


class Style(NamedTuple):
    """The phrases around an answer."""

    opening: str = ""
    fillers: tuple[str, ...] = ()
    closing: str = ""

    def dress(self, answer: str) -> str:
        parts = (self.opening, answer, *self.fillers, self.closing)
        return " ".join(part for part in parts if part)


def draw_style(task: Task, rng: np.random.Generator, *, suited: bool) -> Style:
    """Draw phrases in the register that suits the intent of the task, or in the other
    one."""
    register = world_of(task.world).registers[KINDS[task.kind].intent]
    if not suited:
        register = stock.WARM if register == stock.FORMAL else stock.FORMAL
    count = min(MOST_FILLERS, rng.geometric(1.0 - PADDED) - 1)
    fillers = rng.permutation(stock.FILLERS[register])[:count].tolist()
    opening, closing = (
        pick(phrases[register], rng) if rng.random() < share else ""
        for phrases, share in ((stock.OPENINGS, OPENED), (stock.CLOSINGS, CLOSED))
    )
    if not (opening or closing):
        opening = pick(stock.OPENINGS[register], rng)
    return Style(opening, tuple(fillers), closing)


def respond(
    task: Task, rng: np.random.Generator, *, right: bool, suited: bool = True
) -> str:
    """Draw an answer to a task."""
    key = key_of(task)
    if key.bare:
        return key.answers[0]
    core = pick(key.answers if right else key.wrong, rng)
    return draw_style(task, rng, suited=suited).dress(core)


def pick(options: "tuple[Item, ...] | list[Item]", rng: np.random.Generator) -> Item:
    return options[int(rng.integers(len(options)))]
