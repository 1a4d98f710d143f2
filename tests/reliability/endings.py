"""Programs that end in every way, each a process of its own: endings.py FOLDER.

A case is a small run with a checkpoint after each of four steps, through the front door
of all commands. FOLDER/CASE is its workdir, FOLDER/CASE.log what it printed, and
FOLDER/statuses.json how each ended. The processes are forks of this one, before JAX has
begun anything, so that the imports happen once.
"""

import errno
import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import jax
import jax.numpy as jnp

from rlhf_jax.launching import cli
from rlhf_jax.launching.stage import run_stage
from rlhf_jax.training import checksums, lock, preemption
from rlhf_jax.training.checkpoints import Checkpoints

CONFIG = "tests/reliability/smallest.py:sft"
PATIENCE = 240  # seconds after which a process counts as one that never ends
STEPS = 4
write_checksums, mkdir = checksums.write, os.mkdir


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def fail(error: Exception):
    raise error


def slowly(folder: Path) -> None:
    """Saves are under way for so long that the program ends meanwhile."""
    time.sleep(0.3)
    write_checksums(folder)


def make_no_folder(number: int) -> None:
    """From the second save on, no folder can be made in it."""

    def refuse(path, *args, **kwargs):
        name = os.fspath(path)
        if re.search(r"/checkpoints/([2-9]|\d\d)\..*tmp/.*tmp", name):
            raise OSError(number, os.strerror(number))
        return mkdir(path, *args, **kwargs)

    os.mkdir = refuse


def no_space_in_the_background() -> None:
    def refuse(folder: Path) -> None:
        if folder.name.startswith("2"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_checksums(folder)

    checksums.write = refuse


def hang_and_fail() -> None:
    """A save that never ends, an error, and then SIGTERM."""
    checksums.write = lambda folder: time.sleep(600)


def fail_and_terminate() -> None:
    threading.Timer(1.0, send, [signal.SIGTERM]).start()
    raise ValueError("a mistake")


# Name -> what happens at which step: 0 is before the loop, 5 behind it.
CASES = {
    "done": {},
    "mistake": {3: lambda: fail(ValueError("a mistake"))},
    "late mistake": {5: lambda: fail(ValueError("a mistake"))},
    "bug": {3: lambda: fail(ZeroDivisionError("a bug"))},
    "no space": {0: lambda: make_no_folder(errno.ENOSPC)},
    "quota": {0: lambda: make_no_folder(errno.EDQUOT)},
    "broken disk": {0: lambda: make_no_folder(errno.EIO)},
    "open files": {0: lambda: make_no_folder(errno.EMFILE)},
    "no space in the background": {0: no_space_in_the_background},
    "SIGTERM": {2: lambda: send(signal.SIGTERM)},
    "SIGTERM twice": {2: lambda: [send(signal.SIGTERM), send(signal.SIGTERM)]},
    "Ctrl-C": {2: lambda: send(signal.SIGINT)},
    "Ctrl-C twice": {3: lambda: [send(signal.SIGINT), send(signal.SIGINT)]},
    "Ctrl-C before the loop": {0: lambda: send(signal.SIGINT)},
    "SIGTERM in the last step": {4: lambda: send(signal.SIGTERM)},
    "SIGTERM behind the loop": {5: lambda: send(signal.SIGTERM)},
    "SIGTERM behind an error": {0: hang_and_fail, 2: fail_and_terminate},
    "no front door": {0: lambda: make_no_folder(errno.EIO)},
    "stage": {0: lambda: make_no_folder(errno.EIO)},
    "stage again": {},
}


def main(case: str, config, workdir: str) -> None:
    happens = CASES[case]
    happens.get(0, int)()
    if case.startswith("stage"):
        run_stage(config, workdir)
        return
    lock.acquire(Path(workdir))
    checkpoints = Checkpoints(workdir, keep=5)
    for step in range(1, STEPS + 1):
        happens.get(step, int)()
        if checkpoints.due(step, 1, STEPS):
            checkpoints.save(step, {"x": {"a": jnp.full(3, step)}}, {})
    happens.get(STEPS + 1, int)()
    checkpoints.close()
    lock.release(Path(workdir))


def child(case: str, folder: Path) -> None:
    log = os.open(folder / f"{case}.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    workdir = folder / case.removesuffix(" again")
    workdir.mkdir(exist_ok=True)
    checksums.write = slowly
    signal.signal(signal.SIGINT, signal.default_int_handler)  # `&` has it ignored
    preemption.install()
    jax.config.update("jax_platforms", "cpu")
    if case == "no front door":  # a notebook, or a test: all threads have to end
        main(case, None, str(workdir))
    sys.argv = ["endings.py", f"--config={CONFIG}", f"--workdir={workdir}"]
    cli.run(lambda config, workdir: main(case, config, workdir))


def start(case: str, folder: Path) -> int:
    pid = os.fork()
    if not pid:
        child(case, folder)
        os._exit(0)
    return pid


def status_of(pid: int, deadline: float) -> int | str:
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "never ends"


if __name__ == "__main__":
    folder, statuses = Path(sys.argv[1]), {}
    for is_second in (False, True):
        deadline = time.monotonic() + PATIENCE
        cases = [case for case in CASES if case.endswith(" again") == is_second]
        running = {case: start(case, folder) for case in cases}
        for case, pid in running.items():
            statuses[case] = status_of(pid, deadline)
    (folder / "statuses.json").write_text(json.dumps(statuses))
