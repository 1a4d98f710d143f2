"""How every benchmark times its calls."""

import os
import resource
import time
from collections.abc import Callable, Mapping

import jax
import numpy as np


def measure(
    calls: Mapping[str, Callable[[], object]], *, repeats: int, work: float
) -> dict:
    """Time calls in turns, so that a slow moment of the machine meets all of them.

    The first turn compiles, the second warms up: the rates leave both out.

    Args:
        calls: name -> what is timed, to the end of what it returns.
        work: units of one call, pairs or tokens.

    Returns:
        Of every call, units a second, median and quartiles; seconds of wall time and
        of all processors together, medians; and the seconds of its first turn. Besides,
        the devices, and the process's peak memory.
    """
    wall, busy = ({name: [] for name in calls} for _ in range(2))
    for _ in range(repeats + 2):
        for name, call in calls.items():
            start, start_busy = time.perf_counter(), time.process_time()
            jax.block_until_ready(call())
            wall[name].append(time.perf_counter() - start)
            busy[name].append(time.process_time() - start_busy)
    found = {}
    for name in calls:
        rates = np.quantile(work / np.array(wall[name][2:]), (0.25, 0.5, 0.75))
        found[name] = {
            "per_second": round(rates[1], 2),
            "quartiles": rates[[0, 2]].round(2).tolist(),
            "seconds": round(np.median(wall[name][2:]), 4),
            "processor_seconds": round(np.median(busy[name][2:]), 4),
            "first_seconds": round(wall[name][0], 1),
        }
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    return found | {
        "devices": f"{devices}, {os.cpu_count()} cores",
        "peak_gib": round(peak_gib(), 2),
    }


def peak_gib() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
