"""Many runs on one machine: jobs with their order, a few at a time, each in a workdir.

A job is one command line, `python launch/train.py --config=... --workdir=...`. Workers
are processes that run one job after another; each has a share of the machine's cores
and accelerators to itself.
A finished workdir is skipped and an interrupted one goes on, so the same command again
does what is left. SIGTERM goes on to the workers, which save and leave.
"""

import contextlib
import dataclasses
import functools
import multiprocessing
import multiprocessing.connection
import os
import runpy
import shlex
import signal
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from rlhf_jax.launching.checks import check_stage, naming_the_stage
from rlhf_jax.launching.cli import (
    ROOT,
    saves_finished,
    set_up_logs,
    use_compile_cache,
)
from rlhf_jax.launching.device_groups import group_environment, take_group
from rlhf_jax.launching.stage import run_stage
from rlhf_jax.training import preemption
from rlhf_jax.training.allocator import keep_freed_memory

KILLED = "its process was killed, perhaps for want of memory; see log.txt"
SAVING = 60  # seconds that a worker has to save when its parent is gone

_idle = threading.Event()  # this worker runs no job
_idle.set()


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of a stage.

    Attributes:
        config: file and preset, "configs/ppo.py:tiny".
        overrides: config key (with dots) -> value.
        after: names of jobs that must be done before.
    """

    name: str
    config: str
    overrides: dict[str, Any]
    workdir: Path
    after: tuple[str, ...] = ()

    def command(self) -> str:
        """The command line that does the same."""
        flags = [f"--config={self.config}", f"--workdir={self.workdir}"]
        flags += [f"--config.{key}={value}" for key, value in self.overrides.items()]
        return shlex.join(["python", "launch/train.py", *flags])

    def resolve(self) -> ConfigDict:
        """The config with the overrides.

        Raises:
            KeyError, TypeError: an override that the config does not have, or does
                not take.
        """
        config = load_config(self.config)
        for key, value in self.overrides.items():
            *path, field = key.split(".")
            functools.reduce(getattr, path, config)[field] = value
        return config


def load_config(name: str) -> ConfigDict:
    """The config of a file and preset, "configs/ppo.py:tiny"; locked."""
    path, _, preset = name.partition(":")
    get_config = runpy.run_path(str(ROOT / path))["get_config"]
    config = get_config(preset) if preset else get_config()
    return config.lock()


def check_jobs(jobs: Sequence[Job]) -> None:
    """Refuse options that make no sense, and inputs that are not there, of any job.
    Devices are left alone: they belong to the workers.

    Raises:
        ValueError: names the job.
    """
    later = [job.workdir for job in jobs]
    for job in jobs:
        with naming_the_stage(job.name):
            check_stage(job.resolve(), job.workdir, later=later, on_mesh=False)


def run_jobs(jobs: Sequence[Job], *, workers: int) -> dict[str, str]:
    """Run all jobs, at most `workers` at a time.

    Raises:
        Preempted: SIGTERM, to this process or to a worker; all of them have saved.
        ValueError: the accelerators cannot be shared out to so many workers.

    Returns:
        For each job that was not done its reason: the error, the job it needed, or
        that its process was killed. The traceback is in the workdir's log.txt.
    """
    group_environment(0, workers, os.environ)  # raises here, not in a worker
    done = {job.name for job in jobs if (job.workdir / "summary.json").exists()}
    waiting = {job.name: job for job in jobs if job.name not in done}
    failed: dict[str, str] = {}
    running: dict[Future, tuple[Job, int]] = {}
    began = time.monotonic()
    with contextlib.ExitStack() as pools, _ended_together():

        def start(share: int) -> ProcessPoolExecutor:
            # One process each: where one is killed the others run on.
            context = multiprocessing.get_context("spawn")  # no fork: JAX has threads
            return pools.enter_context(
                ProcessPoolExecutor(1, context, _take_share, (share, workers))
            )

        idle = {share: start(share) for share in range(workers)}
        busy: dict[int, ProcessPoolExecutor] = {}
        while waiting or running:
            for job in list(waiting.values()):
                lost = [name for name in job.after if name in failed]
                if lost:
                    failed[job.name] = f"needs {lost[0]}"
                    del waiting[job.name]
                elif done.issuperset(job.after) and idle:
                    share, busy[share] = idle.popitem()
                    running[busy[share].submit(_run, job)] = job, share
                    del waiting[job.name]
            if not running:
                continue
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                job, share = running.pop(future)
                idle[share] = busy.pop(share)
                error = future.exception()
                if isinstance(error, preemption.Preempted):
                    raise error
                if isinstance(error, BrokenProcessPool):
                    failed[job.name] = KILLED
                    idle[share] = start(share)
                elif error is not None:
                    failed[job.name] = f"{type(error).__name__}: {error}"
                else:
                    done.add(job.name)
                logging.info(
                    "%s: %s  (%d of %d, %.0f s)",
                    job.name, failed.get(job.name, "done"),
                    len(done) + len(failed), len(jobs), time.monotonic() - began,
                )  # fmt: skip
    return failed


@contextlib.contextmanager
def _ended_together() -> Iterator[None]:
    """What ends this process early (SIGTERM, Ctrl-C) ends its workers too."""
    try:
        yield
    except BaseException:
        for worker in multiprocessing.active_children():
            worker.terminate()
        raise


def _take_share(share: int, workers: int) -> None:
    """Give this worker its part of the cores and accelerators, before JAX starts."""
    preemption.install()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    take_group(share, workers)
    if hasattr(os, "sched_setaffinity"):  # not on macOS
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[share % len(cores) :: workers])
    keep_freed_memory()
    use_compile_cache()
    logging.use_absl_handler()
    set_up_logs()


def _end_with_parent() -> None:
    """End this worker when the process that started it is gone, however that ended: a
    run under way saves first."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
    _idle.wait(SAVING)
    os._exit(preemption.STATUS)


def _run(job: Job) -> None:
    """Run one job in this process; what it prints goes to its log.txt."""
    job.workdir.mkdir(parents=True, exist_ok=True)
    _idle.clear()
    with (
        (job.workdir / "log.txt").open("a", encoding="utf-8", buffering=1) as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        logging.get_absl_handler().python_handler.stream = log
        try:
            with saves_finished():
                run_stage(job.resolve(), job.workdir)
        except Exception:
            traceback.print_exc(file=log)
            raise
        finally:
            _idle.set()
            jax.clear_caches()  # programs of other shapes only take memory
