"""The rows of one file, as plain JSON objects, numbered by line.

| file | a row is |
|---|---|
| .jsonl | one object a line |
| .json | an object in a list of objects, or one object a line |
| .csv, .tsv | a line below the line of names; cells are text, an empty cell is null |
| .parquet | a row, numbered from 1 |

Files other than parquet must be UTF-8, and may be gzipped (.csv.gz).
"""

import csv
import datetime
import decimal
import functools
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.data.reading.json_lines import (
    BROKEN_GZIP,
    MAX_TEXT,
    RecordError,
    checked,
    not_utf8,
    not_whole,
    opened,
    parse,
    scan_json_lines,
)

Rows = Iterator[tuple[int, dict | RecordError]]


def scan_file(path: str | Path) -> Rows:
    """Yield (line, row or RecordError) for each row of a file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file's ending is not a key of READERS.
    """
    path = Path(path)
    if path.is_dir():
        raise FileNotFoundError(f"{path} is a folder: name a file in it.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    if ending(path) not in READERS:
        raise ValueError(
            f"{path} has no known ending: name it {', '.join(READERS)} by its contents."
        )
    return READERS[ending(path)](path)


def ending(path: Path) -> str:
    """Return the ending of a file's name without .gz, possibly a key of READERS."""
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def plain(value: Any) -> Any:
    """Convert types of arrow, numpy and TFDS to those of JSON: dates and times become
    ISO 8601, types unknown to JSON become null.

    Raises:
        UnicodeDecodeError: the value holds bytes that are not UTF-8 text.
    """
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        value = float(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | None) else None


def plain_rows(rows: Iterable[dict]) -> Rows:
    """Convert the rows of a library to plain objects, and check them."""
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


def _scan_json(path: Path) -> Rows:
    try:
        with opened(path) as file:
            data = file.read()
        text = data.decode("utf-8-sig")
    except BROKEN_GZIP as error:
        yield 1, not_whole(error)
    except UnicodeDecodeError as error:
        # In a file of JSON lines, the other lines can still be read.
        begins_list = data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
        yield from [(1, not_utf8(error))] if begins_list else scan_json_lines(path)
    else:
        if text.lstrip().startswith("["):
            yield from _scan_list(text)
        elif _is_one_object(text):
            problem = (
                "the file is one object over several lines: write a list of objects, "
                "or one object a line."
            )
            yield 1, RecordError(problem)
        else:
            yield from scan_json_lines(path)


def _scan_list(text: str) -> Rows:
    """Yield the items of a JSON list, each with the line in which the item begins."""
    decoder, line, seen = json.JSONDecoder(), 1, 0
    place = _next_sign(text, text.index("[") + 1)
    while text[place : place + 1] not in ("", "]"):
        line, seen = line + text.count("\n", seen, place), place
        try:
            _, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            yield line, RecordError(f"not JSON, what follows is lost: {error}")
            return
        yield line, parse(text[place:end].encode("utf-8", "surrogatepass"))
        place = _next_sign(text, end)
        if text[place : place + 1] == ",":
            place = _next_sign(text, place + 1)
        elif text[place : place + 1] not in ("", "]"):
            line += text.count("\n", seen, place)
            yield line, RecordError("not JSON, what follows is lost: no comma.")
            return
    line += text.count("\n", seen, place)
    if place == len(text):
        yield line, RecordError("not JSON: the list does not end.")
    elif text[place + 1 :].strip():
        yield line, RecordError("not JSON: more follows the list, and is lost.")


def _next_sign(text: str, place: int) -> int:
    """Return the place of the next character that is not white space."""
    while place < len(text) and text[place].isspace():
        place += 1
    return place


def _is_one_object(text: str) -> bool:
    """Return True if a text is one JSON object over several lines."""
    first, _, rest = text.strip().partition("\n")
    if not rest.strip() or isinstance(parse(first.encode()), dict):
        return False
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _scan_table(path: Path, delimiter: str) -> Rows:
    csv.field_size_limit(MAX_TEXT)
    with opened(path) as file:
        text = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="")
        lines = csv.reader(text, delimiter=delimiter, strict=True)
        names = None
        while True:
            number = lines.line_num + 1
            try:
                cells = next(lines)
                if names is None and cells:
                    names = _names(cells, delimiter)
                elif cells:
                    yield number, checked(_table_row(names, cells))
            except StopIteration:
                return
            except BROKEN_GZIP as error:
                yield number, not_whole(error)
                return
            except (csv.Error, RecordError) as error:
                is_ours = isinstance(error, RecordError)
                yield number, error if is_ours else RecordError(f"no table: {error}.")
                if names is None:
                    return


def _names(cells: list[str], delimiter: str) -> list[str]:
    names = [_as_text(cell, "").strip() for cell in cells]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RecordError("names two columns.", twice or "(no name)")
    others = [sign for sign in ",;\t|" if sign != delimiter and sign in names[0]]
    if len(names) == 1 and others:
        raise RecordError(
            f"names one column, {names[0][:80]!r}: columns must be separated by "
            f"{delimiter!r}, not {others[0]!r}."
        )
    return names


def _table_row(names: list[str], cells: list[str]) -> dict:
    if len(cells) != len(names):
        raise RecordError(f"has {len(cells)} cells; the first line has {len(names)}.")
    columns = zip(names, cells, strict=True)
    return {name: _cell(cell, name) for name, cell in columns}


def _cell(text: str, name: str) -> Any:
    """Return the text of a cell, the messages of a JSON list, or null if empty."""
    text = _as_text(text, name)
    begin = text.lstrip()[:20].replace(" ", "")
    if begin.startswith(('[{"role"', '[{"content"', '[{"from"', '[{"value"')):
        row = parse(f'{{"cell": {text}}}'.encode())
        if isinstance(row, RecordError):
            raise RecordError(f"begins as a list of messages, but is {row}", name)
        return row["cell"]
    if begin.startswith(("[{'role'", "[{'content'", "[{'from'", "[{'value'")):
        problem = "holds messages as Python prints them: write them as JSON."
        raise RecordError(problem, name)
    return text or None


def _as_text(cell: str, name: str) -> str:
    try:
        cell.encode()
    except UnicodeEncodeError:
        problem = "is not UTF-8. Save the file as text in UTF-8."
        raise RecordError(problem, name) from None
    return cell


def _scan_parquet(path: Path) -> Rows:
    import pyarrow.parquet  # a slow import (a second), so only where needed

    rows = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(1024):
            for number, row in plain_rows(batch.to_pylist()):
                yield rows + number, row
            rows += len(batch)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        reason = str(error).strip().partition("\n")[0]
        problem = f"not a whole parquet file, what follows is lost: {reason}"
        yield rows + 1, RecordError(problem)


READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": scan_json_lines,
    ".json": _scan_json,
    ".csv": functools.partial(_scan_table, delimiter=","),
    ".tsv": functools.partial(_scan_table, delimiter="\t"),
    ".parquet": _scan_parquet,
}
