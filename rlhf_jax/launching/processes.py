"""Several processes, one run: flags say where they are, or they find each other.

Everywhere, for process 0, 1, ... of N: the same command, with

    --coordinator=ADDRESS:PORT --num_processes=N --process_id=0

where ADDRESS is process 0's. On TPU pods, slurm and GKE without these flags: there jax
asks the machine. When one of them dies or fails, the others end within a minute.
"""

import contextlib
import importlib.util
import os
import traceback
from collections.abc import Iterator
from pathlib import Path

import jax
from absl import flags, logging

from rlhf_jax.launching import peers
from rlhf_jax.training import preemption

SILENCE = 40  # seconds without a sign of life after which a process counts as dead


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
        ValueError: some of the flags are missing, or the processes do not find each
            other.
    """
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if not missing:
        peers.meet(*given.values())
        jax.distributed.initialize(
            *given.values(),
            initialization_timeout=peers.PATIENCE,
            heartbeat_timeout_seconds=SILENCE,
        )
    elif len(missing) < len(given):
        raise ValueError(
            f"Without {' and '.join(missing)} the processes do not find each other: "
            "give all three, or none where the machine knows."
        )
    elif is_cluster():
        jax.distributed.initialize(heartbeat_timeout_seconds=SILENCE)
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


@contextlib.contextmanager
def failing_at_once() -> Iterator[None]:
    """End a process that fails at once, where there are several: jax would have it wait
    for the others for minutes, and them for it. To stand around all that reports."""
    try:
        yield
    except BaseException as error:
        status = error.code if isinstance(error, SystemExit) else 1
        together = isinstance(error, preemption.Preempted) or not status
        if not jax.distributed.is_initialized():
            raise
        if together:
            peers.part(status or 0)
            raise
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        peers.leave(status)


@contextlib.contextmanager
def missing_no_one() -> Iterator[None]:
    """End this process, and say why, when another of the run is gone. To stand inside
    of all that reports: what jax raises then may be a ValueError."""
    try:
        yield
    except Exception as error:
        if not (jax.distributed.is_initialized() and is_lost_process(error)):
            raise
        reason = str(error).strip().partition("\n")[0][:200]
        peers.leave_lost(reason)


def is_lost_process(error: Exception) -> bool:
    """Whether an error says that another process does not answer any more."""
    signs = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "heartbeat", "Connection closed")
    of_jax = isinstance(error, jax.errors.JaxRuntimeError)
    text = str(error)
    return "Gloo" in text or (of_jax and any(sign in text for sign in signs))
