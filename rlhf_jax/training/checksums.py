"""Checksums of a checkpoint's files, to detect later damage."""

import functools
import hashlib
from pathlib import Path

from rlhf_jax.files import naming, read_json, write_json

FILE = "checksums.json"  # the file in a checkpoint's folder: path -> SHA-256


def write(folder: Path) -> None:
    """Write the checksums of the files of all items."""
    files = {str(path.relative_to(folder)): _sum(path) for path in _files(folder)}
    write_json(folder / FILE, files)


def damage(folder: Path, item: str = "") -> str:
    """Describe the damage of a checkpoint, or of one of its items; "" without damage.

    Raises:
        FileNotFoundError: no checksums were written, or their file was deleted.
        OSError: a file cannot be opened, so its content is unknown.
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
    """Return the files of the items, without orbax's own files, which still change."""
    return sorted(path for path in folder.glob("*/**/*") if path.is_file())


def _sum(path: Path) -> str:
    status = path.stat()
    return _read_sum(path, status.st_ino, status.st_size, status.st_mtime_ns)


@functools.cache
def _read_sum(path: Path, *_) -> str:
    """Return the SHA-256 of a file; an unchanged file is read once per program."""
    with naming(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
