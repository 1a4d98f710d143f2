"""The sets of human preferences in a folder, whole and by the strata of their rows."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rlhf_jax.data.cleaning.prompt_filters import language_share
from rlhf_jax.data.reading.files import READERS, ending, scan_file
from rlhf_jax.data.reading.json_lines import RecordError, each_good
from rlhf_jax.data.reading.layouts import RowRecords, detect, records_of
from rlhf_jax.data.records import Comparison

# Layouts of rows that hold comparisons (data/reading/layouts.py).
LAYOUTS = (
    "dialogues",
    "text",
    "message_pairs",
    "scored",
    "ranked",
    "llmbar",
    "pandalm",
    "qa_feedback",
    "comparison",
)
SAMPLE = 50  # responses by whose language a set's unit of length is chosen


class PreferenceSet(NamedTuple):
    """The N comparisons of a set."""

    comparisons: list[Comparison]
    strata: list[str]  # [N]: the value of the field that names a row's part, or ""
    left_out: Counter  # numbers of rows and pairs left out, by reason

    def parts(self) -> dict[str, np.ndarray]:
        """Return the rows int [M] of each stratum. A value with slashes counts for its
        beginnings too: "a/b" is a part of "a"."""
        names = {
            "/".join(value.split("/")[: depth + 1])
            for value in set(self.strata) - {""}
            for depth in range(value.count("/") + 1)
        }
        return {
            name: np.flatnonzero(
                [s == name or s.startswith(f"{name}/") for s in self.strata]
            )
            for name in sorted(names)
        }


def preference_files(folder: Path) -> dict[str, list[Path]]:
    """Return the files of each set of comparisons in a folder by the set's name: a
    folder in it, with all its splits, or a file.

    Raises:
        FileNotFoundError: there is no such folder, or no set in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    sets = {}
    for path in sorted(folder.iterdir()):
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        files = [file for file in files if file.is_file() and _holds_pairs(file)]
        if files:
            sets[path.name if path.is_dir() else path.name.partition(".")[0]] = files
    if not sets:
        raise FileNotFoundError(
            f"{folder} holds no set of comparisons in a layout of docs/data_formats.md."
        )
    return sets


def _holds_pairs(file: Path) -> bool:
    """Return True if the first readable row of a file holds comparisons."""
    if ending(file) not in READERS:
        return False
    for _, row in scan_file(file):
        if not isinstance(row, RecordError):
            try:
                return detect(row) in LAYOUTS
            except RecordError:
                return False
    return False


def read_set(files: Sequence[Path], fields: Sequence[str]) -> PreferenceSet:
    """Read the comparisons of a set; unreadable rows are left out, counted and named in
    the log.

    Args:
        fields: names of the field that says which stratum a row belongs to; the first
            that a row has counts.
    """
    result = PreferenceSet([], [], Counter())

    def counted(rows: Iterator) -> Iterator:
        for row in rows:
            result.left_out["bad record"] += 1  # taken back once the row proves good
            yield row

    def convert(row: dict) -> tuple[RowRecords, str]:
        return records_of(row), next((str(row[x]) for x in fields if x in row), "")

    for file in files:
        rows = each_good(
            counted(scan_file(file)), convert, source=file, on_bad_record="skip"
        )
        for read, stratum in rows:
            result.left_out["bad record"] -= 1
            result.left_out.update(read.left_out)
            result.comparisons.extend(read.records)
            result.strata.extend([stratum] * len(read.records))
    return result


def unit_of_length(comparisons: Sequence[Comparison]) -> str:
    """Return "characters" for a set in Chinese or Japanese, else "words"."""
    texts = [comparison.response_a for comparison in comparisons[:SAMPLE]]
    without_spaces = [language_share(text, ("zh", "ja")) for text in texts]
    return "characters" if np.mean(without_spaces) > 0.5 else "words"


def length_in(unit: str, text: str) -> int:
    """Count the characters of a text, or its words between white space."""
    return len(text) if unit == "characters" else len(text.split())
