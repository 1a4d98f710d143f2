"""Equal groups of a machine's accelerators, one for each worker process.

Environment variables, which JAX reads when it first looks for devices, show a process
only its own group; nothing here touches the devices before that.
"""

import os
from collections.abc import Mapping
from pathlib import Path

BOUNDS = {
    1: "1,1,1",
    2: "1,2,1",
    4: "2,2,1",
    8: "2,4,1",
}  # number of TPU chips in a process -> their layout


def group_environment(
    worker: int, workers: int, environ: Mapping[str, str], dev: Path = Path("/dev")
) -> dict[str, str]:
    """Return the environment variables of one worker's group; none without
    accelerators.

    Raises:
        ValueError: the number of workers does not divide that of the accelerators.
    """
    gpus = _visible(environ.get("CUDA_VISIBLE_DEVICES"), dev.glob("nvidia[0-9]*"))
    chips = [*dev.glob("accel[0-9]*"), *dev.glob("vfio/[0-9]*")]
    tpus = _visible(environ.get("TPU_VISIBLE_DEVICES"), chips)
    devices = gpus or tpus
    if environ.get("JAX_PLATFORMS") == "cpu" or not devices:
        return {}
    if len(devices) % workers:
        raise ValueError(
            f"{len(devices)} accelerators cannot be shared out to {workers} workers: "
            f"choose --workers so that it divides {len(devices)}."
        )
    size = len(devices) // workers
    mine = ",".join(devices[worker * size : (worker + 1) * size])
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
    """Restrict this process to the accelerators of its group."""
    os.environ.update(group_environment(worker, workers, os.environ))


def _visible(named: str | None, devices) -> list[str]:
    """Return the numbers of the named devices, or of all devices of the machine."""
    if named is not None:
        return [name for name in named.split(",") if name]
    return [str(i) for i, _ in enumerate(devices)]
