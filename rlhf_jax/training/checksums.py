"""Checksums of a checkpoint's files: is it still what was saved?"""

import functools
import hashlib
from pathlib import Path

from rlhf_jax.files import naming, read_json, write_json

FILE = "checksums.json"  # in the checkpoint's folder: path -> SHA-256


def write(folder: Path) -> None:
    """Note the checksums of every item's files."""
    files = {str(path.relative_to(folder)): _sum(path) for path in _files(folder)}
    write_json(folder / FILE, files)


def damage(folder: Path, item: str = "") -> str:
    """What is wrong with a checkpoint, or with one of its items, in words; "" when
    nothing is.

    Raises:
        FileNotFoundError: no checksums were written, or they are gone.
        OSError: a file cannot be opened here, which says nothing about what is in it.
    """
    try:
        files = read_json(folder / FILE)
    except ValueError:
        return f"{FILE} cannot be read"
    listed = {Path(name).parts[0] for name in files}
    unlisted = {path.name for path in folder.iterdir() if path.is_dir()} - listed
    if unlisted:
        return f"{FILE} lists nothing of {min(unlisted)}"
    for name, checksum in files.items():
        path = folder / name
        if item and path.parent != folder / item:
            continue
        if not path.is_file():
            return f"{name} is missing"
        if _sum(path) != checksum:
            return f"{name} is not what was saved: its checksum differs"
    return ""


def _files(folder: Path) -> list[Path]:
    """The items' files: what orbax keeps beside them changes until the end."""
    return sorted(path for path in folder.glob("*/**/*") if path.is_file())


def _sum(path: Path) -> str:
    found = path.stat()
    return _read_sum(path, found.st_ino, found.st_size, found.st_mtime_ns)


@functools.cache
def _read_sum(path: Path, *_) -> str:
    """The same file is read once a program, however often its run is asked after."""
    with naming(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
