"""Many runs on one machine: ordered jobs, a few at a time, each in its workdir.

A job is one command line, `python launch/train.py --config=... --workdir=...`. Workers
are processes that run one job after another; each has its own share of the machine's
cores and accelerators. The same command again skips finished workdirs and resumes
interrupted ones. SIGTERM is passed on to the workers, which save and exit.
"""

import contextlib
import dataclasses
import functools
import json
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

from rlhf_jax.data.chat_client import FREE_SETTINGS
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
from rlhf_jax.training.workdir import refuse_other_config

KILLED = "its process was killed, perhaps for lack of memory; see log.txt"
FREE = [f"{part}.{name}" for part in ("service", "judge") for name in FREE_SETTINGS]
SAVING = 60  # seconds that a worker has to save when its parent has died

_idle = threading.Event()  # set while this worker runs no job
_idle.set()


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of a stage.

    Attributes:
        config: file and preset, "configs/ppo.py:tiny".
        overrides: config key (with dots) -> value.
        after: the names of jobs that must be done before.
    """

    name: str
    config: str
    overrides: dict[str, Any]
    workdir: Path
    after: tuple[str, ...] = ()

    def command(self) -> str:
        """Return the equivalent command line."""
        flags = [f"--config={self.config}", f"--workdir={self.workdir}"]
        flags += [f"--config.{key}={value}" for key, value in self.overrides.items()]
        return shlex.join(["python", "launch/train.py", *flags])

    def resolve(self) -> ConfigDict:
        """Return the config with the overrides.

        Raises:
            KeyError, TypeError: the config does not have the key of an override, or
                does not accept its value.
        """
        config = load_config(self.config)
        for key, value in self.overrides.items():
            *path, field = key.split(".")
            functools.reduce(getattr, path, config)[field] = value
        return config


def load_config(name: str) -> ConfigDict:
    """Return the locked config of a file and preset, "configs/ppo.py:tiny"."""
    path, _, preset = name.partition(":")
    get_config = runpy.run_path(str(ROOT / path))["get_config"]
    config = get_config(preset) if preset else get_config()
    return config.lock()


def check_jobs(jobs: Sequence[Job]) -> None:
    """Refuse jobs with invalid options or missing inputs, and folders with the results
    of another config, which would pass for those of a job. The check does not touch
    devices, which belong to the workers.

    Raises:
        ValueError: names the job.
    """
    later = [job.workdir for job in jobs]
    for job in jobs:
        with naming_the_stage(job.name):
            config = job.resolve()
            check_stage(config, job.workdir, later=later, on_mesh=False)
            resolved = json.loads(config.to_json_best_effort())
            refuse_other_config(job.workdir, resolved, free=FREE)


def run_jobs(
    jobs: Sequence[Job], *, workers: int, workers_per_device: int = 1
) -> dict[str, str]:
    """Run all jobs, at most `workers` x `workers_per_device` at a time.

    Args:
        workers: the number of groups of accelerators, one a worker.
        workers_per_device: the number of workers that share each group; its GPUs'
            memory is divided among them.

    Raises:
        Preempted: SIGTERM has reached this process or a worker; all have saved.
        ValueError: see `group_environment`.

    Returns:
        The reason for each job that was not done: its error, the failed job that it
        needs, or the kill of its process. The traceback is in the workdir's log.txt.
    """
    # An error is raised here, not in a worker.
    group_environment(0, workers, os.environ, per_device=workers_per_device)
    done = {job.name for job in jobs if (job.workdir / "summary.json").exists()}
    waiting = {job.name: job for job in jobs if job.name not in done}
    failed: dict[str, str] = {}
    running: dict[Future, tuple[Job, int]] = {}
    began = time.monotonic()
    with contextlib.ExitStack() as pools, _ended_together():

        def start(share: int) -> ProcessPoolExecutor:
            # One pool for each worker: if one worker is killed, the others continue.
            context = multiprocessing.get_context("spawn")  # no fork: JAX has threads
            return pools.enter_context(
                ProcessPoolExecutor(
                    1, context, _take_share, (share, workers, workers_per_device)
                )
            )

        shares = range(workers * workers_per_device)
        idle = {share: start(share) for share in shares}
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
    """End the workers when SIGTERM or Ctrl-C ends this process."""
    try:
        yield
    except BaseException:
        for worker in multiprocessing.active_children():
            worker.terminate()
        raise


def _take_share(share: int, groups: int, per_device: int) -> None:
    """Give this worker its share of the cores and accelerators, before JAX starts."""
    preemption.install()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    take_group(share, groups, per_device)
    if hasattr(os, "sched_setaffinity"):  # not on macOS
        cores = sorted(os.sched_getaffinity(0))
        workers = groups * per_device
        os.sched_setaffinity(0, cores[share % len(cores) :: workers])
    keep_freed_memory()
    use_compile_cache()
    logging.use_absl_handler()
    set_up_logs()


def _end_with_parent() -> None:
    """End this worker when its parent process has ended, in whatever way; the worker's
    run saves first."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
    _idle.wait(SAVING)
    os._exit(preemption.STATUS)


def _run(job: Job) -> None:
    """Run one job in this process; its output goes to its log.txt."""
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
            jax.clear_caches()  # the programs of the last job only take memory
