"""Work shared by the processes of a run: each does a part, or process 0 does all.

Results are exchanged as JSON, so that a tuple arrives as a list. Every process must
call these functions, in the same order.
"""

import contextvars
import functools
import json
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

# Errors of the user's input or of the disk, which are passed to the other processes, so
# that no process waits in a collective that the failed process never enters.
TOLD = (ValueError, OSError)

# True while process 0 works for all: functions of this file that it calls then do not
# contact the other processes.
_alone = contextvars.ContextVar("alone", default=False)


def is_first() -> bool:
    """Return True in process 0 of the run, which writes files and calls services. A
    single process gets True without starting its accelerators."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def share_out(function: Callable, items: Sequence) -> list:
    """Return `[function(x) for x in items]`, the same in every process: each of N
    processes computes every N-th item and receives the results of the others.

    Raises:
        ValueError: `function` raised an error in one process; all processes raise it.
    """
    if not _are_several():
        return [function(x) for x in items]
    own, count = jax.process_index(), jax.process_count()
    parts = _told(lambda: [function(x) for x in items[own::count]])
    return [parts[i % count][i // count] for i in range(len(items))]


def first_does(function: Callable, *args):
    """Return `function(*args)`, called in process 0 alone, in all processes.

    Raises:
        ValueError: `function` raised an error in process 0; the other processes raise
            a ValueError with the same message.
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
    """Decorate a function that makes missing files: process 0 calls the function first,
    the others when the files are complete."""

    @functools.wraps(make)
    def in_turn(*args):
        made = []
        first_does(lambda: made.append(make(*args)))
        return made[0] if made else make(*args)

    return in_turn


def exchange(mine) -> list:
    """Return the arguments of all processes, in the order of the processes."""
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
    # This test comes first, because counting processes starts the accelerators.
    joined = jax.distributed.is_initialized()
    return joined and jax.process_count() > 1 and not _alone.get()


def _told(function: Callable) -> list:
    """Return `function()` of every process, or raise the first error in all of them."""
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
