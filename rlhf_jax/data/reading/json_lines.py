"""Strict reading of files of one JSON object a line, plain or gzipped.

A line is either a good object or a `RecordError`; `keep_good` turns a stream of objects
and errors into records. No line is lost silently: every bad line is reported by file,
line, field and reason, whether bad lines stop the run or are left out.
"""

import dataclasses
import gzip
import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

from absl import logging

from rlhf_jax.files import writing_whole

MAX_LINE = 2**24  # longest line in bytes, against files without line ends
MAX_TEXT = 2**20  # longest string, in characters
MAX_DEPTH = 32  # deepest nesting of lists and objects
SHOWN = 5  # number of bad records in a message; the report lists all

OnBadRecord = Literal["error", "skip"]
BROKEN_GZIP = (EOFError, zlib.error, gzip.BadGzipFile)
BEGINNINGS = {  # first bytes of files that are not UTF-8 text
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"PAR1": "a parquet file",
    b"PK\x03\x04": "a zip or Excel file",
    b"\x28\xb5\x2f\xfd": "a zstandard file",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ": "an xz file",
}


class RecordError(ValueError):
    """A record is invalid: `problem` in `field` ("" for the whole line)."""

    def __init__(self, problem: str, field: str = ""):
        super().__init__(f"field '{field}' {problem}" if field else problem)
        self.problem, self.field = problem, field

    def within(self, parent: str) -> "RecordError":
        """Return the same error for a field inside `parent`."""
        return RecordError(self.problem, f"{parent}.{self.field}".rstrip("."))


@dataclasses.dataclass(frozen=True)
class BadRecord:
    """A line of the report."""

    file: str  # path of the file, or name of a data set
    line: int  # number of the line, or of the data set's row, from 1
    field: str
    reason: str

    def __str__(self) -> str:
        where = f", field '{self.field}'" if self.field else ""
        return f"{self.file}, line {self.line}{where}: {self.reason}"


def scan_json_lines(
    path: str | Path, wanted: Iterator[bool] | None = None
) -> Iterator[tuple[int, dict | RecordError | None]]:
    """Yield (line number, object or RecordError) for each line that is not blank.

    A broken gzip stream ends the file with one error; the complete lines before the
    break are read.

    Args:
        wanted: True or False for each line that is not blank; unwanted lines are not
            parsed, and yield None.

    Raises:
        FileNotFoundError: the file does not exist.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    number = 0
    try:
        with opened(path) as file:
            for number, line in enumerate(_lines(file), start=1):
                if line is not None and not line.strip():
                    continue
                if wanted is not None and not next(wanted, True):
                    yield number, None
                elif line is None:
                    yield number, RecordError(f"longer than {MAX_LINE} bytes.")
                else:
                    yield number, parse(line)
    except BROKEN_GZIP as error:
        yield number + 1, not_whole(error)


def opened(path: Path) -> BinaryIO:
    """Open a file for bytes, decompressed if the file is gzipped, whatever its name."""
    with path.open("rb") as file:
        is_gzip = path.suffix == ".gz" or file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if is_gzip else path.open("rb")


def not_whole(error: Exception) -> RecordError:
    """Return the RecordError for a truncated gzip stream, one of BROKEN_GZIP."""
    return RecordError(f"not a whole gzip file, what follows is lost: {error}")


def checked(row: Any) -> dict:
    """Return `row` if it is an object that can be written again as JSON.

    Raises:
        RecordError: the row is not an object, or a value in it is too large, too deep,
            a lone surrogate, or a number that JSON does not have.
    """
    if not isinstance(row, dict):
        raise RecordError(f"must be a JSON object, not {kind_of(row)}.")
    for field, value in row.items():
        _check(field, "", 0)
        _check(value, field, 1)
    return row


def keep_good(rows, convert, **where) -> list:
    """Return the results of `each_good` as a list."""
    return list(each_good(rows, convert, **where))


def each_good(
    rows: Iterable[tuple[int, dict | RecordError]],
    convert: Callable[[dict], Any],
    *,
    source: str | Path,
    on_bad_record: OnBadRecord = "error",
    report: Path | None = None,
) -> Iterator:
    """Yield `convert(row)` for every good row.

    Args:
        convert: a function that raises RecordError for bad rows.
        source: a file or the name of a data set, for messages.
        on_bad_record: "error" raises after all rows are read, with the bad ones named;
            "skip" leaves bad rows out.
        report: a .jsonl file that lists all bad records, also those of other sources.

    Raises:
        RecordError: at the end, if a row is bad under "error", or if no row is good.
    """
    if on_bad_record not in ("error", "skip"):
        raise ValueError(f"{on_bad_record=} must be 'error' or 'skip'.")
    good, bad = 0, []
    for number, row in rows:
        try:
            if isinstance(row, RecordError):
                raise row
            record = convert(row)
        except RecordError as error:
            bad.append(BadRecord(str(source), number, error.field, error.problem))
        else:
            good += 1
            yield record
    if report is not None:
        _write_report(report, str(source), bad)
    if bad:
        shown = "\n  ".join(map(str, bad[:SHOWN]))
        more = f"\n  ... and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        listed = f" (all in {report})" if report is not None else ""
        message = f"{len(bad)} bad of {good + len(bad)}{listed}:\n  {shown}{more}"
        if on_bad_record == "error":
            raise RecordError(f'{message}\nFix them, or set on_bad_record="skip".')
        logging.warning("Left out %s", message)
    if not good:
        raise RecordError(f"{source} holds no records.")


def kind_of(value) -> str:
    """Return the name of a value's type for messages, as in JSON."""
    if value is None:
        return "null"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return "number" if is_number else type(value).__name__


def _lines(file: BinaryIO) -> Iterator[bytes | None]:
    """Yield the lines of a file, None for a line above the limit."""
    start = True
    while line := file.readline(MAX_LINE + 1):
        if len(line) <= MAX_LINE:
            yield line.removeprefix(b"\xef\xbb\xbf") if start else line
        else:
            while line and not line.endswith(b"\n"):
                line = file.readline(MAX_LINE)
            yield None
        start = False


def parse(line: bytes) -> dict | RecordError:
    """Parse the object of a line of JSON, or return the error."""
    try:
        text = line.decode("utf-8")
        try:
            row = _DECODER.decode(text)
        except _NotFiniteError:
            return checked(json.loads(text, object_pairs_hook=_object))
        # Most lines are too short and too plain to violate a limit of `checked`.
        deep = line.count(b"{") + line.count(b"[") > MAX_DEPTH
        plain = len(line) <= MAX_TEXT and not deep and rb"\u" not in line
        return row if plain and isinstance(row, dict) else checked(row)
    except RecordError as error:
        return error
    except UnicodeDecodeError as error:
        return not_utf8(error)
    except (
        ValueError,
        RecursionError,
    ) as error:  # not JSON, or a number of 5,000 digits
        return RecordError(f"not JSON: {error}")


def not_utf8(error: UnicodeDecodeError) -> RecordError:
    """Return the error for bytes that are not text, with advice."""
    kinds = [kind for b, kind in BEGINNINGS.items() if error.object.startswith(b)]
    begins = f" It begins as {kinds[0]} does." if kinds else ""
    return RecordError(
        f"not UTF-8: {error.reason} at byte {error.start}.{begins} Save the file as "
        "text in UTF-8."
    )


def _object(pairs: list[tuple[str, Any]]) -> dict:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RecordError("occurs twice.", twice)
    return value


class _NotFiniteError(Exception):
    """A number is not finite; `checked` locates the number."""


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _NotFiniteError
    return number


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_float=_float, parse_constant=_float
)


def _check(value, field: str, depth: int) -> None:
    if isinstance(value, str):
        if len(value) > MAX_TEXT:
            raise RecordError(f"has more than {MAX_TEXT} characters.", field)
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise RecordError("holds half of a surrogate pair.", field) from None
    elif isinstance(value, dict | list):
        if depth > MAX_DEPTH:
            raise RecordError(f"is nested deeper than {MAX_DEPTH}.", field)
        if isinstance(value, dict):
            for name, item in value.items():
                _check(name, field, depth)
                _check(item, f"{field}.{name}", depth + 1)
        else:
            for i, item in enumerate(value):
                _check(item, f"{field}[{i}]", depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise RecordError(f"is {value}, which is not finite.", field)


def _write_report(report: Path, source: str, bad: list[BadRecord]) -> None:
    """Replace the report's lines about `source`; lines about other sources stay."""
    lines = report.read_bytes().split(b"\n") if report.exists() else []
    others = [line for line in lines if line.strip() and not _is_of(line, source)]
    if lines or bad:
        own = [json.dumps(dataclasses.asdict(record)).encode() for record in bad]
        with writing_whole(report, "wb") as file:
            file.write(b"".join(line + b"\n" for line in others + own))


def _is_of(line: bytes, source: str) -> bool:
    """Return True if a line of a report is about `source`."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(record, dict) and record.get("file") == source
