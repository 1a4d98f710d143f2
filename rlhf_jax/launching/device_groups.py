"""A machine's accelerators in equal groups, one for each process that trains.

A process sees its group alone, by environment variables that are read when JAX first
looks for devices; before that nothing here touches them.
"""

import os
from collections.abc import Mapping
from pathlib import Path

BOUNDS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1", 8: "2,4,1"}  # of TPU chips in a process


def group_environment(
    worker: int, workers: int, environ: Mapping[str, str], dev: Path = Path("/dev")
) -> dict[str, str]:
    """Environment variables of one worker's group; empty without accelerators.

    Raises:
        ValueError: the accelerators cannot be shared out equally.
    """
    gpus = _visible(environ.get("CUDA_VISIBLE_DEVICES"), dev.glob("nvidia[0-9]*"))
    chips = [*dev.glob("accel[0-9]*"), *dev.glob("vfio/[0-9]*")]
    tpus = _visible(environ.get("TPU_VISIBLE_DEVICES"), chips)
    found = gpus or tpus
    if environ.get("JAX_PLATFORMS") == "cpu" or not found:
        return {}
    if len(found) % workers:
        raise ValueError(
            f"{len(found)} accelerators cannot be shared out to {workers} workers: "
            f"choose --workers so that it divides {len(found)}."
        )
    size = len(found) // workers
    mine = ",".join(found[worker * size : (worker + 1) * size])
    if gpus:
        return {"CUDA_VISIBLE_DEVICES": mine}
    if size not in BOUNDS:
        raise ValueError(f"A process takes {list(BOUNDS)} TPU chips, not {size}.")
    return {
        "TPU_VISIBLE_DEVICES": mine,
        "TPU_CHIPS_PER_PROCESS_BOUNDS": BOUNDS[size],
        "TPU_PROCESS_BOUNDS": "1,1,1",
    }


def take_group(worker: int, workers: int) -> None:
    """Make this process's accelerators those of its group."""
    os.environ.update(group_environment(worker, workers, os.environ))


def _visible(named: str | None, devices) -> list[str]:
    """The numbers of devices: those that are named, else all that the machine has."""
    if named is not None:
        return [name for name in named.split(",") if name]
    return [str(i) for i, _ in enumerate(devices)]
