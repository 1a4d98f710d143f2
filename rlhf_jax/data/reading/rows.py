"""The rows of a data set as plain JSON objects.

A data set is a file, a folder with one or more files a split, a folder that Hugging
Face `datasets` saved, a data set on its hub, or one of TensorFlow Datasets by random
access, which needs no TensorFlow.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from rlhf_jax.data.reading.files import READERS, Rows, ending, plain_rows, scan_file

SHOWN = 8  # number of names in a message


def scan_rows(origin: str, split: str) -> Rows:
    """Yield the rows of all `sources` of one split."""
    parts = sources(origin, split)
    return (row for _, rows in parts for row in rows)


def sources(origin: str, split: str) -> list[tuple[str, Rows]]:
    """Return (name for messages, rows) for each file or library source of one split.

    Args:
        origin: a file of a kind in files.py, whose rows all belong to the split; a
            folder with a file SPLIT.jsonl, .json, .csv, .tsv or .parquet, the same in
            parts (SPLIT-00000-of-00002.parquet), or a folder SPLIT of such files; a
            folder that `datasets` saved (save_to_disk); "hf:NAME" or "hf:NAME:SUBSET"
            on the hub; "tfds:NAME", with the config and version as TFDS writes them,
            "tfds:NAME/CONFIG:1.0.0", or "tfds:FOLDER" of a prepared data set.

    Raises:
        FileNotFoundError: the file, folder or split does not exist.
        ValueError: the files of the split are ambiguous, or the library cannot read
            them; the message gives the reason.
    """
    kind, _, name = origin.partition(":")
    if kind == "hf":
        rows = _from_hub(*name.partition(":")[::2], split)
        return [(f"{origin} ({split})", plain_rows(rows))]
    if kind == "tfds":
        return [(f"{origin} ({split})", plain_rows(_from_tfds(name, split)))]
    path = Path(origin)
    if path.is_file():
        return [(origin, scan_file(path))]
    if not path.is_dir():
        raise FileNotFoundError(
            f"There is no file or folder {path}. A data set on Hugging Face's hub is "
            "named hf:NAME."
        )
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return [(f"{origin} ({split})", plain_rows(_from_disk(path, split)))]
    return [(str(file), scan_file(file)) for file in split_files(path, split)]


def split_files(folder: Path, split: str) -> list[Path]:
    """Return the file of a split, or its parts in order.

    Raises:
        FileNotFoundError: there is no such file; the message lists the existing ones.
        ValueError: several files match the split, or a part is missing.
    """
    files = _data_files(folder)
    groups = defaultdict(list)
    for file in files:
        name = file.name.removesuffix(".gz").removesuffix(ending(file))
        part = re.fullmatch(re.escape(split) + r"-(\d+)-of-(\d+)", name)
        of = int(part[2]) if part else 0
        in_split = file.parent != folder and file.parent.name == split
        if part or name == split or in_split:
            groups[file.parent, file.name[len(name) :], of].append(file)
    names = _names([min(group) for group in groups.values()] or files, folder)
    if not files:
        others = _names([p for p in folder.iterdir() if p.is_file()], folder)
        kinds = ", ".join(READERS)
        raise FileNotFoundError(
            f"{folder} has no file of rows ({kinds}), only: {others}."
            if others
            else f"{folder} is empty."
        )
    if not groups:
        raise FileNotFoundError(
            f"{folder} has no file for the split {split!r}, only: {names}. Set the "
            "name of the split to that of a file without its ending, or give the path "
            'of one file; test_split="" holds out a share of the training split.'
        )
    if len(groups) > 1:
        raise ValueError(
            f"{folder} has several files for the split {split!r}: {names}. Give the "
            "path of one file, or leave one in the folder."
        )
    (((_, _, of), group),) = groups.items()
    if of and len(group) != of:
        raise ValueError(
            f"{folder} has {len(group)} of {of} parts of the split {split!r}: "
            f"{_names(group, folder)}."
        )
    return sorted(group)


def _data_files(folder: Path) -> list[Path]:
    """List visible files that could hold rows, at most two folders down."""
    paths = [p for depth in ("*", "*/*", "*/*/*") for p in folder.glob(depth)]
    return [
        p
        for p in paths
        if ending(p) in READERS
        and not any(part.startswith((".", "_")) for part in p.relative_to(folder).parts)
        and p.is_file()
    ]


def _names(files: list[Path], folder: Path) -> str:
    names = sorted(str(file.relative_to(folder)) for file in files)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


# `datasets` and `tensorflow_datasets` take seconds to import, so only where needed.


def _from_disk(folder: Path, split: str) -> Iterable:
    import datasets

    if (folder / "dataset_dict.json").is_file():
        return _loaded(lambda: datasets.load_from_disk(folder)[split], folder, split)
    if split != "train":  # a data set without splits
        raise FileNotFoundError(f"{folder} has no split {split!r}, only 'train'.")
    return _loaded(lambda: datasets.load_from_disk(folder), folder, split)


def _from_hub(name: str, subset: str, split: str) -> Iterable:
    import datasets

    return _loaded(
        lambda: datasets.load_dataset(name, subset or None, split=split),
        f"hf:{name}:{subset}".rstrip(":"),
        split,
    )


def _from_tfds(name: str, split: str) -> Iterator:
    import tensorflow_datasets as tfds

    def load():
        if Path(name).is_dir():
            return tfds.builder_from_directory(name).as_data_source(split)
        return tfds.data_source(name, split=split)

    source = _loaded(load, f"tfds:{name}", split)
    return (source[i] for i in range(len(source)))


def _loaded(load, origin, split: str):
    """Return `load()`; convert any error of a library to one clear line."""
    try:
        return load()
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"Cannot read split {split!r} of {origin}: {reason}"
        ) from error
