"""Files that appear whole or not at all, and clear errors of the disk."""

import contextlib
import errno
import json
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from rlhf_jax.shared_work import is_first

# Errors of the system by number: the description and the remedy.
_TROUBLES = {
    errno.ENOSPC: ("No space left on the disk", "free some space"),
    errno.EDQUOT: ("The disk quota is used up", "free some space, or raise the quota"),
    errno.EFBIG: ("A file became too large", "raise the limit (ulimit -f)"),
    errno.EMFILE: ("Too many open files", "raise the limit (ulimit -n)"),
    errno.ENFILE: ("Too many open files on this machine", "close other programs"),
    errno.EROFS: ("The disk is read-only", "make it writable"),
    errno.EIO: ("The disk fails", "repair it, or move the folder to another"),
}
# The patterns of an error's number in messages of Python, Rust and tensorstore.
_NUMBER = re.compile(r"(?i)\b(?:errno |os error |os_error_code=')(\d+)")


@contextlib.contextmanager
def writing_whole(path: str | os.PathLike, mode: str = "w") -> Iterator[IO]:
    """Open a file that gets its name at the end, when all of it is on the disk. An
    error or a kill leaves the previous file. Text is UTF-8. Process 0 of a run writes;
    the output of the other processes is discarded.

    Raises:
        OSError: the file cannot be written; names the file.
    """
    encoding = None if "b" in mode else "utf-8"
    if not is_first():
        with open(os.devnull, mode, encoding=encoding) as nowhere:
            yield nowhere
        return
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open(mode, encoding=encoding) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file as `writing_whole` does."""
    with writing_whole(path) as file:
        file.write(text)


def write_json(path: str | os.PathLike, content) -> None:
    """Write a JSON file, indented, as `writing_whole` does."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | os.PathLike) -> dict:
    """Read the object of a JSON file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file does not hold a JSON object; names the file.
    """
    try:
        with naming(path):
            content = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it holds no JSON object.")
    return content


def write_arrays(path: str | os.PathLike, arrays: dict[str, np.ndarray]) -> None:
    """Write a .npz file as `writing_whole` does."""
    with writing_whole(path, "wb") as file:
        np.savez(file, **arrays)


def read_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read the arrays of a .npz file, without pickles.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is broken; names the file.
    """
    try:
        with naming(path), zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:  # a checksum differs
                raise ValueError(f"{archive.testzip()} is broken")
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except MemoryError:
        raise
    except Exception as error:  # zipfile and numpy raise any of these for a broken file
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise  # EINVAL: a broken file names an invalid position
        raise ValueError(f"{path} is damaged: {error}.") from None


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Name this file in errors of the disk, which Python's `read` and `write` omit."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in _TROUBLES:
            error.filename = str(path)
        raise


def disk_trouble(error: BaseException) -> tuple[str, str] | None:
    """Describe an error of the disk or of a limit of the system, and its remedy; None
    for any other error, such as an accelerator that is out of memory."""
    while error is not None:
        numbers = [getattr(error, "errno", None)]
        numbers += [int(number) for number in _NUMBER.findall(str(error))]
        for number in numbers:
            if number in _TROUBLES:
                return _TROUBLES[number]
        error = error.__cause__ or error.__context__
    return None
