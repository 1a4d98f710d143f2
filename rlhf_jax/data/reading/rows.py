"""The rows of a data set, wherever it lies, as plain JSON objects.

Files of JSON lines, folders that Hugging Face `datasets` can read, data sets on its
hub, and TensorFlow Datasets by random access, which needs no TensorFlow.
"""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.data.reading.json_lines import RecordError, checked, scan_json_lines

Rows = Iterator[tuple[int, dict | RecordError]]  # numbered from 1


def scan_rows(origin: str, split: str) -> Rows:
    """The rows of one split.

    Args:
        origin: a folder with SPLIT.jsonl[.gz] or one that `datasets` reads (parquet,
            csv, save_to_disk); "hf:NAME" or "hf:NAME:SUBSET" on the hub; "tfds:NAME",
            with the config and version as TFDS writes them, "tfds:NAME/CONFIG:1.0.0",
            or "tfds:FOLDER" of a prepared data set.

    Raises:
        FileNotFoundError: there is no such folder or split.
        ValueError: the library cannot read it; says why.
    """
    kind, _, name = origin.partition(":")
    if kind == "hf":
        return _plain_rows(_from_hub(*name.partition(":")[::2], split))
    if kind == "tfds":
        return _plain_rows(_from_tfds(name, split))
    folder = Path(origin)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    for file in (folder / f"{split}.jsonl", folder / f"{split}.jsonl.gz"):
        if file.is_file():
            return scan_json_lines(file)
    return _plain_rows(_from_folder(folder, split))


def plain(value: Any) -> Any:
    """JSON's types for those of arrow, numpy and TFDS; what JSON has not is null.

    Raises:
        UnicodeDecodeError: bytes that are not text.
    """
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | None) else None


def _plain_rows(rows: Iterable[dict]) -> Rows:
    for number, row in enumerate(rows, start=1):
        result = {}
        try:
            for field, value in row.items():
                result[field] = plain(value)
            yield number, checked(result)
        except UnicodeDecodeError as error:
            problem = f"is not UTF-8: {error.reason} at byte {error.start}."
            yield number, RecordError(problem, field)
        except RecordError as error:
            yield number, error


# `datasets` and `tensorflow_datasets` take seconds to import: only when they are used.


def _from_folder(folder: Path, split: str) -> Iterable:
    import datasets

    if (folder / "dataset_dict.json").is_file():
        return _loaded(lambda: datasets.load_from_disk(folder)[split], folder, split)
    if (folder / "state.json").is_file():  # a data set without splits
        if split != "train":
            raise FileNotFoundError(f"{folder} has no split {split!r}, only 'train'.")
        return _loaded(lambda: datasets.load_from_disk(folder), folder, split)
    if not any(folder.rglob("*.*")):
        raise FileNotFoundError(f"{folder} is empty.")
    return _loaded(
        lambda: datasets.load_dataset(str(folder), split=split), folder, split
    )


def _from_hub(name: str, subset: str, split: str) -> Iterable:
    import datasets

    return _loaded(
        lambda: datasets.load_dataset(name, subset or None, split=split),
        f"hf:{name}:{subset}".rstrip(":"),
        split,
    )


def _from_tfds(name: str, split: str) -> Iterable:
    import tensorflow_datasets as tfds

    def load():
        if Path(name).is_dir():
            return tfds.builder_from_directory(name).as_data_source(split)
        return tfds.data_source(name, split=split)

    source = _loaded(load, f"tfds:{name}", split)
    return (source[i] for i in range(len(source)))


def _loaded(load, origin, split: str):
    """`load()`; whatever a library raises becomes one clear line."""
    try:
        return load()
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"Cannot read split {split!r} of {origin}: {reason}"
        ) from error
