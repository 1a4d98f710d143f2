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
from typing import TextIO

from absl import logging

FILE = ".lock"

_held: dict[Path, TextIO] = {}


def acquire(folder: Path) -> None:
    """Take a folder's lock for this process, until `release` or its end. A process that
    has it takes it again without harm.

    Raises:
        ValueError: another process has it; its host and pid are named.
    """
    folder = folder.absolute()
    if folder in _held:
        return
    file = (folder / FILE).open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _holder(file)
        file.close()
        raise ValueError(
            f"{folder} is in use by {holder}. Wait until it is done, stop it, or use "
            "another --workdir."
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        logging.warning("The file system of %s has no locks.", folder)
    left_by = _holder(file)
    if left_by:
        logging.info("%s: stale lock of %s, which is gone.", folder, left_by)
    file.truncate(0)
    record = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    file.write(json.dumps(record))
    file.flush()
    _held[folder] = file


def release(folder: Path) -> None:
    """Give a lock up; nothing happens when this process does not have it."""
    file = _held.pop(folder.absolute(), None)
    if file is not None:
        file.truncate(0)
        file.close()


def _holder(file: TextIO) -> str:
    """Who wrote the file, in words; "" when nobody did."""
    file.seek(0)
    text = file.read()
    try:
        return "process {pid} on {host} (since {since})".format(**json.loads(text))
    except (ValueError, KeyError, TypeError):
        return "an unnamed process" if text else ""
