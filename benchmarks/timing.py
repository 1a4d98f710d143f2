"""How every benchmark times a call."""

import resource
import time
from collections.abc import Callable

import jax
import numpy as np


def measure(call: Callable[[], object], *, repeats: int, work: float) -> dict:
    """Time `call` after one more that compiles and one that warms up.

    Args:
        call: what is timed, to the end of what it returns.
        work: units of one call, pairs or tokens.

    Returns:
        Units a second, median and quartiles; seconds of wall time and of all processors
        together, medians; of the first call too; the process's peak memory.
    """
    wall, busy = [], []
    for _ in range(repeats + 2):
        start, start_busy = time.perf_counter(), time.process_time()
        jax.block_until_ready(call())
        wall.append(time.perf_counter() - start)
        busy.append(time.process_time() - start_busy)
    rates = np.quantile(work / np.array(wall[2:]), (0.25, 0.5, 0.75))
    return {
        "per_second": round(rates[1], 2),
        "quartiles": rates[[0, 2]].round(2).tolist(),
        "seconds": round(np.median(wall[2:]), 4),
        "processor_seconds": round(np.median(busy[2:]), 4),
        "first_seconds": round(wall[0], 1),
        "peak_gib": round(peak_gib(), 2),
    }


def peak_gib() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
