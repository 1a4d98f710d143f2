"""Work on records that the processes of a run share out among them."""

import json
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils


def share_out(function: Callable, items: Sequence) -> list:
    """`[function(x) for x in items]`, the same in every process: of N, each does every
    N-th item and gets the results of the others. All must ask together.

    Args:
        function: its results travel as JSON, so a tuple may come back as a list.

    Raises:
        ValueError: what `function` raises in any process says the same in all.
    """
    own, count = jax.process_index(), jax.process_count()
    if count == 1:
        return [function(x) for x in items]
    try:
        mine = {"results": [function(x) for x in items[own::count]]}
    except ValueError as error:  # told to the others, who would wait for ever
        mine = {"error": str(error)}
    parts = _exchange(mine)
    for part in parts:
        if "error" in part:
            raise ValueError(part["error"])
    return [parts[i % count]["results"][i // count] for i in range(len(items))]


def _exchange(mine: dict) -> list[dict]:
    """What every process passes, in their order, in every process."""
    message = np.frombuffer(json.dumps(mine).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(message.size))
    padded = np.pad(message, (0, sizes.max() - message.size))
    messages = multihost_utils.process_allgather(padded)
    return [
        json.loads(found[:size].tobytes())
        for found, size in zip(messages, sizes, strict=True)
    ]
