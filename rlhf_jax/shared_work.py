"""Work that the processes of one run share: each does a part, or the first does all.

Results travel between the processes as JSON, so a tuple arrives as a list. Every
process must call these functions, in the same order.
"""

import contextvars
import functools
import json
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

# Errors of a user's input or of the disk. The others are told of them, so that no
# process sits in a collective that never comes.
TOLD = (ValueError, OSError)

# Set while process 0 does something for all: what it calls then asks nobody else.
_alone = contextvars.ContextVar("alone", default=False)


def is_first() -> bool:
    """Whether this is process 0 of the run, the one that writes files and asks
    services. A process alone is told so without a start of its accelerators."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def share_out(function: Callable, items: Sequence) -> list:
    """`[function(x) for x in items]`, the same in every process: of N processes, each
    does every N-th item and gets the results of the others.

    Raises:
        ValueError: says in all processes what `function` raised in one of them.
    """
    if not _are_several():
        return [function(x) for x in items]
    own, count = jax.process_index(), jax.process_count()
    parts = _told(lambda: [function(x) for x in items[own::count]])
    return [parts[i % count][i // count] for i in range(len(items))]


def first_does(function: Callable, *args):
    """`function(*args)`, called in process 0 alone; the others get its result.

    Raises:
        ValueError: says in the others what `function` raised in process 0.
    """
    if not _are_several():
        return function(*args)

    def alone():
        token = _alone.set(True)
        try:
            return function(*args)
        finally:
            _alone.reset(token)

    return _told(lambda: alone() if is_first() else None)[0]


def first_makes(make: Callable) -> Callable:
    """A function that makes files if they are not there: process 0 calls it first, the
    others when the files are whole."""

    @functools.wraps(make)
    def in_turn(*args):
        made = []
        first_does(lambda: made.append(make(*args)))
        return made[0] if made else make(*args)

    return in_turn


def exchange(mine) -> list:
    """What every process passes, in the order of the processes."""
    if not _are_several():
        return [mine]
    message = np.frombuffer(json.dumps(mine).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(message.size))
    padded = np.pad(message, (0, sizes.max() - message.size))
    messages = multihost_utils.process_allgather(padded)
    return [
        json.loads(row[:size].tobytes())
        for row, size in zip(messages, sizes, strict=True)
    ]


def _are_several() -> bool:
    # Asked first, since the count starts the accelerators.
    joined = jax.distributed.is_initialized()
    return joined and jax.process_count() > 1 and not _alone.get()


def _told(function: Callable) -> list:
    """Every process's `function()`, or the first error among them, in all."""
    own = None
    try:
        mine = {"result": function()}
    except TOLD as error:
        own, mine = error, {"error": str(error)}
    parts = exchange(mine)
    if own is not None:
        raise own
    for number, part in enumerate(parts):
        if "error" in part:
            raise ValueError(f"Process {number}: {part['error']}")
    return [part["result"] for part in parts]
