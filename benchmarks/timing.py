"""How every benchmark times its calls."""

import os
import resource
import time
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

PEAK_SIZE = 2048  # of the square matrices by which a machine's peak is measured


def measure(
    calls: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    work: float,
    operations: Callable[[], Mapping[str, int]] = dict,
) -> dict:
    """Time calls in turns, so that a slow moment of the machine meets all of them.

    The first turn compiles, the second warms up: the rates leave both out.

    Args:
        calls: name -> what is timed, to the end of what it returns.
        work: units of one call, pairs or tokens.
        operations: how many the matrix products of a call are (`planning.flops`),
            asked for at the end.

    Returns:
        Of every call, units a second, median and quartiles; seconds of wall time and
        of all processors together, medians; the seconds of its first turn; and with
        `operations` the share of the machine's peak that they make. Besides, the
        devices, that peak, and the process's peak memory.
    """
    peak = matrix_product_rate(jnp.float32)
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
    for name, count in operations().items():
        share = count / found[name]["seconds"] / peak
        found[name] |= {"gflop": round(count / 1e9, 1), "of_peak": round(share, 3)}
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    return found | {
        "devices": f"{devices}, {os.cpu_count()} cores",
        "peak_gflops": round(peak / 1e9),
        "peak_gib": round(peak_gib(), 2),
    }


def matrix_product_rate(dtype) -> float:
    """Operations a second of a large product: the best of a few."""
    x = jnp.ones((PEAK_SIZE, PEAK_SIZE), dtype)
    product = jax.jit(jnp.dot)
    return 2 * PEAK_SIZE**3 / best_seconds(lambda: product(x, x))


def best_seconds(call: Callable[[], object], *, repeats: int = 10) -> float:
    """The shortest of a few calls, after one that compiles."""
    jax.block_until_ready(call())
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def peak_gib() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
