"""Checksums of a checkpoint's files: is it still what was saved?"""

import hashlib
import json
from pathlib import Path

FILE = "checksums.json"  # in the checkpoint's folder: path -> SHA-256


def write(folder: Path) -> None:
    """Note the checksums of every item's files."""
    files = {str(path.relative_to(folder)): _sum(path) for path in _files(folder)}
    (folder / FILE).write_text(json.dumps(files, indent=1))


def damage(folder: Path) -> str:
    """What is wrong with a checkpoint, in words; "" when nothing is, or when it was
    saved before there were checksums."""
    try:
        text = (folder / FILE).read_text()
        files = dict(json.loads(text))
    except FileNotFoundError:
        return ""
    except (ValueError, TypeError):  # no JSON, no text, no object
        return f"{FILE} cannot be read"
    for name, checksum in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if _sum(path) != checksum:
            return f"{name} is not what was saved: its checksum differs"
    return ""


def _files(folder: Path) -> list[Path]:
    """The items' files: what orbax keeps beside them changes until the end."""
    return sorted(path for path in folder.glob("*/**/*") if path.is_file())


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
