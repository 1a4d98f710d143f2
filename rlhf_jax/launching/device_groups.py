"""Equal groups of a machine's accelerators, each for one worker process or, on GPUs,
for several side by side.

Environment variables, which JAX reads when it first looks for devices, show a process
only its own group and its share of the memory; nothing here touches the devices before
that.
"""

import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path

BOUNDS = {
    1: "1,1,1",
    2: "1,2,1",
    4: "2,2,1",
    8: "2,4,1",
}  # number of TPU chips in a process -> their layout


# The share of a GPU's memory that jax takes, by its two names for it, and the share
# that all workers of a GPU take together where neither is set.
FRACTIONS = ("XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_CLIENT_MEM_FRACTION")
WHOLE = 0.95
HOST_LIMIT = "XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB"


def group_environment(
    worker: int,
    groups: int,
    environ: Mapping[str, str],
    dev: Path = Path("/dev"),
    *,
    per_device: int = 1,
) -> dict[str, str]:
    """Return the environment variables of one worker; none without accelerators.

    Args:
        worker: the worker's number, below groups * per_device; neighbours belong to
            different groups.
        groups: the number of groups of accelerators.
        per_device: the number of workers that share a group, and its memory.

    Raises:
        ValueError: the number of groups does not divide that of the accelerators, or
            workers would share a TPU.
    """
    gpus = _visible(environ.get("CUDA_VISIBLE_DEVICES"), dev.glob("nvidia[0-9]*"))
    chips = [*dev.glob("accel[0-9]*"), *dev.glob("vfio/[0-9]*")]
    tpus = _visible(environ.get("TPU_VISIBLE_DEVICES"), chips)
    devices = gpus or tpus
    if environ.get("JAX_PLATFORMS") == "cpu" or not devices:
        return {}
    if len(devices) % groups:
        raise ValueError(
            f"{len(devices)} accelerators cannot be shared out to {groups} workers: "
            f"choose --workers so that it divides {len(devices)}."
        )
    size, group = len(devices) // groups, worker % groups
    mine = ",".join(devices[group * size : (group + 1) * size])
    if gpus:
        return {"CUDA_VISIBLE_DEVICES": mine} | _memory(environ, per_device)
    if per_device > 1:
        raise ValueError(
            f"--workers_per_device={per_device}: a TPU belongs to one process. Set it "
            f"to 1, and --workers to {len(devices)} at most."
        )
    if size not in BOUNDS:
        raise ValueError(f"A process takes {list(BOUNDS)} TPU chips, not {size}.")
    return {
        "TPU_VISIBLE_DEVICES": mine,
        "TPU_CHIPS_PER_PROCESS_BOUNDS": BOUNDS[size],
        "TPU_PROCESS_BOUNDS": "1,1,1",
    }


def take_memory(environ: MutableMapping[str, str]) -> None:
    """Let jax reserve WHOLE of a GPU's memory, and use all but an eighth of the
    machine's own for what is offloaded, unless the environment says otherwise: jax
    itself takes 75 %, and 64 GiB of the machine's."""
    if not any(environ.get(name) for name in FRACTIONS):
        environ[FRACTIONS[0]] = str(WHOLE)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    environ.setdefault(HOST_LIMIT, str(machine * 7 // 8 // 2**30))


def take_group(worker: int, groups: int, per_device: int) -> None:
    """Restrict this process to its group of accelerators and its share of memory."""
    os.environ.update(
        group_environment(worker, groups, os.environ, per_device=per_device)
    )


def _memory(environ: Mapping[str, str], parts: int) -> dict[str, str]:
    """Return the setting of one of `parts` equal shares of a GPU's memory."""
    if parts == 1:
        return {}
    name = next((name for name in FRACTIONS if environ.get(name)), FRACTIONS[0])
    return {name: f"{float(environ.get(name) or WHOLE) / parts:.4f}"}


def _visible(named: str | None, devices) -> list[str]:
    """Return the numbers of the named devices, or of all devices of the machine."""
    if named is not None:
        return [name for name in named.split(",") if name]
    return [str(i) for i, _ in enumerate(devices)]
