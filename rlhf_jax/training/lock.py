"""One process a workdir: a lock that names its holder and falls with it.

The kernel gives the lock up when the holder dies, in whatever way, so a lock that can
be taken is stale whatever its file says.
"""

import errno
import fcntl
import json
import os
import socket
import time
from pathlib import Path

from absl import logging

FILE = ".lock"

# Folder -> its file and itself, open: the folder stays when somebody deletes the file.
_held: dict[Path, tuple[int, int]] = {}


def acquire(folder: Path) -> None:
    """Take a folder's lock for this process, until `release` or its end. A process that
    has it takes it again without harm.

    Raises:
        ValueError: another process has it; its host and pid are named.
    """
    folder = folder.absolute()
    if folder in _held:
        return
    file = os.open(folder / FILE, os.O_RDWR | os.O_CREAT, 0o666)
    both = file, os.open(folder, os.O_RDONLY)
    try:
        has_locks = [_lock(descriptor) for descriptor in both]
    except BlockingIOError:
        holder = _holder(file) or "another process"
        for descriptor in both:
            os.close(descriptor)
        raise ValueError(
            f"{folder} is in use by {holder}. Wait until it is done, stop it, or use "
            "another --workdir."
        ) from None
    if not any(has_locks):
        logging.warning("The file system of %s has no locks.", folder)
    left_by = _holder(file)
    if left_by:
        logging.info("%s: stale lock of %s, which is gone.", folder, left_by)
    record = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    os.ftruncate(file, 0)
    os.pwrite(file, json.dumps(record).encode(), 0)
    _held[folder] = both


def release(folder: Path) -> None:
    """Give a lock up; nothing happens when this process does not have it."""
    folder = folder.absolute()
    if folder in _held:
        file, itself = _held.pop(folder)
        os.ftruncate(file, 0)
        os.close(file)
        os.close(itself)


def release_all() -> None:
    """Give up every lock that this process has."""
    for folder in list(_held):
        release(folder)


def _lock(descriptor: int) -> bool:
    """Whether there is a lock to take: a network's file system may have none, or none
    of folders. Raises BlockingIOError where another process has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            return False
        raise
    return True


def _holder(file: int) -> str:
    """Who wrote the file, in words; "" when nobody did."""
    text = os.pread(file, 1000, 0)
    try:
        return "process {pid} on {host} (since {since})".format(**json.loads(text))
    except (ValueError, KeyError, TypeError):
        return "an unnamed process" if text else ""
