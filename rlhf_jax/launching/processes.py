"""A run in more than one process: the processes connect by flags or by themselves.

Start the same command for each process 0, 1, ... of N, with the flags

    --coordinator=ADDRESS:PORT --num_processes=N --process_id=0

where ADDRESS is that of process 0. TPU pods, slurm and GKE need no flags: there jax
asks the machine. When a process dies or fails, the others end within a minute.
"""

import contextlib
import importlib.util
import os
import sys
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
    """Join the other processes by the values of the flags, see `join`."""
    names = ("coordinator", "num_processes", "process_id")
    join({name: flags.FLAGS[name].value for name in names})


def join(given: dict) -> None:
    """Join the other processes, if there are any, before any other call of jax.

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
    if jax.process_index():  # process 0 logs and prints for all
        logging.set_verbosity(logging.WARNING)
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def is_cluster() -> bool:
    """Return True for a task of a slurm job with more than one task and for a TPU
    machine (of a pod, also on GKE), where jax can ask for the other processes."""
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return True
    chips = [*Path("/dev").glob("accel*"), *Path("/dev/vfio").glob("[0-9]*")]
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


@contextlib.contextmanager
def failing_at_once() -> Iterator[None]:
    """End a failing process of a run with other processes at once; jax would let it
    wait for the others for minutes, and the others for it. Use as the outermost context
    manager, around all that reports errors."""
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
    """End this process, with a message, when another process of the run was lost. Use
    as the innermost context manager, inside all that reports errors, because the error
    that jax raises may be a ValueError."""
    try:
        yield
    except Exception as error:
        if not (jax.distributed.is_initialized() and is_lost_process(error)):
            raise
        reason = str(error).strip().partition("\n")[0][:200]
        peers.leave_lost(reason)


def is_lost_process(error: Exception) -> bool:
    """Return True for an error that says that another process no longer answers."""
    signs = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "heartbeat", "Connection closed")
    of_jax = isinstance(error, jax.errors.JaxRuntimeError)
    text = str(error)
    return "Gloo" in text or (of_jax and any(sign in text for sign in signs))
