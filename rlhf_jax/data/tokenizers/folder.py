"""A tokenizer's folder: the files that belong to a tokenizer, written all or none."""

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
    """Return True if a folder holds any file that marks a tokenizer."""
    return any((Path(path) / name).is_file() for name in MARKS)


def read_settings(folder: Path, name: str) -> dict:
    """Read the object of a JSON file, {} if absent. Raises as `files.read_json`."""
    path = folder / name
    return read_json(path) if path.is_file() else {}


@contextlib.contextmanager
def writing_whole(path: str | Path) -> Iterator[Path]:
    """Yield a new folder beside `path` to write a tokenizer into, and rename this
    folder at the end: an error or a kill leaves no partial tokenizer. Other files in
    `path`, such as a model, stay; an older tokenizer is deleted.
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
        # `path` holds other files, such as a model: move the files in one by one, and
        # the MARKS last, since a tokenizer is recognised by them.
        for file in sorted(making.iterdir(), key=lambda file: file.name in MARKS):
            file.replace(path / file.name)
        making.rmdir()
