"""Several processes, one run: flags say where they are, or they find each other.

Everywhere, for process 0, 1, ... of N: the same command, with

    --coordinator=ADDRESS:PORT --num_processes=N --process_id=0

where ADDRESS is process 0's. On TPU pods, slurm and GKE without these flags: there jax
asks the machine.
"""

import importlib.util
import os
from pathlib import Path

import jax
from absl import flags, logging


def define_flags() -> None:
    flags.DEFINE_string("coordinator", None, "Process 0, as ADDRESS:PORT.")
    flags.DEFINE_integer("num_processes", None, "How many make up the run.")
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")


def connect() -> None:
    """Join the other processes that the flags speak of, see `join`."""
    names = ("coordinator", "num_processes", "process_id")
    join({name: flags.FLAGS[name].value for name in names})


def join(given: dict) -> None:
    """Join the other processes, if there are any; before anything else of jax.

    Raises:
        ValueError: some of the flags are missing, or contradict each other.
    """
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if not missing:
        address, count, index = given.values()
        if not 0 <= index < count:
            raise ValueError(
                f"--process_id={index}: processes count from 0 to {count - 1}."
            )
        jax.distributed.initialize(address, count, index)
    elif len(missing) < len(given):
        raise ValueError(
            f"Without {' and '.join(missing)} the processes do not find each other: "
            "give all three, or none where the machine knows."
        )
    elif is_cluster():
        jax.distributed.initialize()
    else:
        return
    if jax.process_index():
        logging.set_verbosity(logging.WARNING)  # one process tells what all do


def is_cluster() -> bool:
    """Whether this is one of several tasks of slurm, or a TPU machine (of a pod, on GKE
    too, perhaps): jax knows how to ask these."""
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return True
    chips = [*Path("/dev").glob("accel*"), *Path("/dev/vfio").glob("[0-9]*")]
    return bool(chips) and importlib.util.find_spec("libtpu") is not None
