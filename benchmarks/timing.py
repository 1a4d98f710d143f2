"""Timing of the calls of every benchmark."""

import os
import resource
import time
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

PEAK_SIZE = 2048  # rows of the square matrices that measure a machine's peak


def measure(
    calls: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    work: float,
    operations: Callable[[], Mapping[str, int]] = dict,
) -> dict:
    """Time calls in turns, so that a slow moment of the machine affects all of them.

    The first turn compiles and the second warms up; the rates leave out both.

    Args:
        calls: name -> the function to time, until its results are ready.
        work: units of one call, pairs or tokens.
        operations: returns name -> FLOPs of the matrix products of a call
            (`planning.flops`); called after the timing.

    Returns:
        For every call: units per second (median and quartiles); seconds of wall time
        and of all processors together (medians); the seconds of the first turn; and,
        with `operations`, GFLOP and the share of the machine's peak. Besides these, the
        devices, the peak in GFLOP/s, and the process's peak memory in GiB.
    """
    peak = matrix_product_rate(jnp.float32)
    wall, busy = ({name: [] for name in calls} for _ in range(2))
    for _ in range(repeats + 2):
        for name, call in calls.items():
            start, start_busy = time.perf_counter(), time.process_time()
            jax.block_until_ready(call())
            wall[name].append(time.perf_counter() - start)
            busy[name].append(time.process_time() - start_busy)
    results = {}
    for name in calls:
        rates = np.quantile(work / np.array(wall[name][2:]), (0.25, 0.5, 0.75))
        results[name] = {
            "per_second": round(rates[1], 2),
            "quartiles": rates[[0, 2]].round(2).tolist(),
            "seconds": round(np.median(wall[name][2:]), 4),
            "processor_seconds": round(np.median(busy[name][2:]), 4),
            "first_seconds": round(wall[name][0], 1),
        }
    for name, count in operations().items():
        share = count / results[name]["seconds"] / peak
        results[name] |= {"gflop": round(count / 1e9, 1), "of_peak": round(share, 3)}
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    return results | {
        "devices": f"{devices}, {os.cpu_count()} cores",
        "peak_gflops": round(peak / 1e9),
        "peak_gib": round(peak_gib(), 2),
    }


def matrix_product_rate(dtype, *, size: int = PEAK_SIZE) -> float:
    """Measure operations per second of a product of two square matrices with `size`
    rows of random numbers: the best of a few."""
    x = jax.random.normal(jax.random.key(0), (size, size), dtype)
    product = jax.jit(jnp.dot)
    return 2 * size**3 / best_seconds(lambda: product(x, x))


def read_rate(size: int) -> float:
    """Measure bytes per second of reading an array of `size` bytes: the best of a
    few."""
    x, read = jnp.ones(size // 4), jax.jit(jnp.sum)
    return size / best_seconds(lambda: read(x))


def best_seconds(call: Callable[[], object], *, repeats: int = 10) -> float:
    """Return the seconds of the shortest of a few calls, after one that compiles."""
    jax.block_until_ready(call())
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def peak_gib() -> float:
    """Return the peak memory of this process, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
