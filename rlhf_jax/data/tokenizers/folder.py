"""A tokenizer's folder: which files belong to it, and how they appear, all at once."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from rlhf_jax.files import naming, read_json

MARKS = (
    "tokenizer.json",
    "tokenizer.model",
    "ice_text.model",
    "tokenizer_config.json",
)
FILES = (
    *MARKS,
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
)


def has_tokenizer(path: str | Path) -> bool:
    """Whether a folder holds a tokenizer, whole or not."""
    return any((Path(path) / name).is_file() for name in MARKS)


def read_settings(folder: Path, name: str) -> dict:
    """The object of a JSON file that may be absent. Raises as `files.read_json`."""
    path = folder / name
    return read_json(path) if path.is_file() else {}


@contextlib.contextmanager
def writing_whole(path: str | Path) -> Iterator[Path]:
    """A new folder beside `path` to write a tokenizer into, which gets its name at the
    end: after an error or a kill there is no tokenizer, and no half of one. What else
    is in `path` stays, such as a model; an older tokenizer does not.
    """
    path = Path(path)
    making = path.with_name(f"{path.name}.making")
    with naming(making):
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        yield making
        for name in FILES if path.is_dir() else ():
            (path / name).unlink(missing_ok=True)
        if not path.is_dir() or not any(path.iterdir()):
            making.rename(path)
            return
        # Into a folder with a model: last is what the others are read by.
        for file in sorted(making.iterdir(), key=lambda file: file.name in MARKS):
            file.replace(path / file.name)
        making.rmdir()
