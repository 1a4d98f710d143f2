"""The lock of a workdir: one process per workdir, named in the lock's file.

The kernel releases the lock when its holder dies, in whatever way, so a lock that can
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

# Folder -> its lock file and the folder itself, both open and locked: the folder stays
# locked when somebody deletes the file. One dict per process.
_held: dict[Path, tuple[int, int]] = {}


def acquire(folder: Path) -> None:
    """Take a folder's lock until `release` or the end of this process. Taking a lock
    again that this process holds has no effect.

    Raises:
        ValueError: another process holds the lock; names its host and pid.
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
        logging.info("%s: stale lock of %s, which has ended.", folder, left_by)
    record = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    os.ftruncate(file, 0)
    os.pwrite(file, json.dumps(record).encode(), 0)
    _held[folder] = both


def release(folder: Path) -> None:
    """Release a lock, if this process holds it."""
    folder = folder.absolute()
    if folder in _held:
        file, itself = _held.pop(folder)
        os.ftruncate(file, 0)
        os.close(file)
        os.close(itself)


def release_all() -> None:
    """Release all locks of this process."""
    for folder in list(_held):
        release(folder)


def _lock(descriptor: int) -> bool:
    """Try to lock a file or folder. Return False where the file system has no such
    lock, as some network file systems have none of folders. Raise BlockingIOError where
    another process holds the lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            return False
        raise
    return True


def _holder(file: int) -> str:
    """Describe the process that wrote the file; "" for an empty file."""
    text = os.pread(file, 1000, 0)
    try:
        return "process {pid} on {host} (since {since})".format(**json.loads(text))
    except (ValueError, KeyError, TypeError):
        return "an unnamed process" if text else ""
