"""Work on records that the processes of a run share out among them."""

import pickle
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils


def share_out(function: Callable, items: Sequence) -> list:
    """`[function(x) for x in items]`, the same in every process: of N, each does every
    N-th item and gets the results of the others. All must ask together.

    Raises:
        Exception: what `function` raises, in whichever process, in all of them.
    """
    own, count = jax.process_index(), jax.process_count()
    if count == 1:
        return [function(x) for x in items]
    try:
        results = [function(x) for x in items[own::count]]
    except Exception as error:  # told to the others, who would wait for ever
        results = error
    parts = _exchange(results)
    for part in parts:
        if isinstance(part, Exception):
            raise part
    return [parts[i % count][i // count] for i in range(len(items))]


def _exchange(mine) -> list:
    """What every process passes, in their order, in every process."""
    message = np.frombuffer(pickle.dumps(mine), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(message.size))
    padded = np.pad(message, (0, sizes.max() - message.size))
    messages = multihost_utils.process_allgather(padded)
    return [
        pickle.loads(found[:size].tobytes())
        for found, size in zip(messages, sizes, strict=True)
    ]
