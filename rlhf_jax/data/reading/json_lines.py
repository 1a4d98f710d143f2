"""Files of one JSON object a line, plain or gzipped: read strictly, none lost silently.

A line is either a good object or a `RecordError`; `keep_good` turns a stream of both
into records, and reports every bad line by file, line, field and reason, whether it
stops the run or is left out.
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

MAX_LINE = 2**24  # bytes; keeps a file without line ends out of memory
MAX_TEXT = 2**20  # characters in one string
MAX_DEPTH = 32  # lists and objects inside each other
SHOWN = 5  # bad records in a message; the report lists all

OnBadRecord = Literal["error", "skip"]


class RecordError(ValueError):
    """No valid record: what is wrong, and in which field ("": the whole line)."""

    def __init__(self, problem: str, field: str = ""):
        super().__init__(f"field '{field}' {problem}" if field else problem)
        self.problem, self.field = problem, field

    def within(self, parent: str) -> "RecordError":
        """The same, of a field inside `parent`."""
        return RecordError(self.problem, f"{parent}.{self.field}".rstrip("."))


@dataclasses.dataclass(frozen=True)
class BadRecord:
    """A line of the report."""

    file: str  # or the name of a data set
    line: int  # from 1; the row of a data set
    field: str
    reason: str

    def __str__(self) -> str:
        where = f", field '{self.field}'" if self.field else ""
        return f"{self.file}, line {self.line}{where}: {self.reason}"


def scan_json_lines(
    path: str | Path, wanted: Iterator[bool] | None = None
) -> Iterator[tuple[int, dict | RecordError | None]]:
    """(line number, object or what is wrong with it) for each line that is not blank.

    A broken gzip stream ends the file with one error; the whole lines before stay.

    Args:
        wanted: says of each such line whether it is; the others are not parsed, and
            come as None.

    Raises:
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(_lines(file), start=1):
                if line is None:
                    yield number, RecordError(f"longer than {MAX_LINE} bytes.")
                elif line.strip():
                    skip = wanted is not None and not next(wanted, True)
                    yield number, None if skip else _parse(line)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        problem = f"not a whole gzip file, what follows is lost: {error}"
        yield number + 1, RecordError(problem)


def checked(row: Any) -> dict:
    """`row`, if it is an object that can be kept and written again.

    Raises:
        RecordError: not an object; or a value in it is too large or too deep, half of
            a character, or a number that JSON does not know.
    """
    if not isinstance(row, dict):
        raise RecordError(f"must be a JSON object, not {kind_of(row)}.")
    for field, value in row.items():
        _check(field, "", 0)
        _check(value, field, 1)
    return row


def keep_good(rows, convert, **where) -> list:
    """The list of what `each_good` yields."""
    return list(each_good(rows, convert, **where))


def each_good(
    rows: Iterable[tuple[int, dict | RecordError]],
    convert: Callable[[dict], Any],
    *,
    source: str | Path,
    on_bad_record: OnBadRecord = "error",
    report: Path | None = None,
) -> Iterator:
    """`convert(row)` of every good row, one after the other.

    Args:
        convert: raises RecordError for a row that it does not take.
        source: a file or the name of a data set, for messages.
        on_bad_record: "error" stops after reading everything, with the bad ones named;
            "skip" leaves them out.
        report: a .jsonl file that lists all bad records, of this source among others.

    Raises:
        RecordError: at the end, a bad row, under "error"; or there is no good one.
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
            raise RecordError(f'{message}\nMend them, or set on_bad_record="skip".')
        logging.warning("Left out %s", message)
    if not good:
        raise RecordError(f"{source} holds no records.")


def kind_of(value) -> str:
    """What JSON calls it, for messages."""
    return "null" if value is None else type(value).__name__


def _lines(file: BinaryIO) -> Iterator[bytes | None]:
    """The lines of a file; None for one above the limit."""
    start = True
    while line := file.readline(MAX_LINE + 1):
        if len(line) <= MAX_LINE:
            yield line.removeprefix(b"\xef\xbb\xbf") if start else line
        else:
            while line and not line.endswith(b"\n"):
                line = file.readline(MAX_LINE)
            yield None
        start = False


def _parse(line: bytes) -> dict | RecordError:
    try:
        text = line.decode("utf-8")
        try:
            row = _DECODER.decode(text)
        except _NotFiniteError:
            return checked(json.loads(text, object_pairs_hook=_object))
        # Most lines are too short and too plain to hold what `checked` looks for.
        deep = line.count(b"{") + line.count(b"[") > MAX_DEPTH
        plain = len(line) <= MAX_TEXT and not deep and rb"\u" not in line
        return row if plain and isinstance(row, dict) else checked(row)
    except RecordError as error:
        return error
    except UnicodeDecodeError as error:
        return RecordError(f"not UTF-8: {error.reason} at byte {error.start}.")
    except (ValueError, RecursionError) as error:  # JSON, or a number of 5,000 digits
        return RecordError(f"not JSON: {error}")


def _object(pairs: list[tuple[str, Any]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RecordError("stands twice.", twice)
    return found


class _NotFiniteError(Exception):
    """There is a number that is not finite; `checked` finds where."""


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
        raise RecordError(f"is {value}, which is no number.", field)


def _write_report(report: Path, source: str, bad: list[BadRecord]) -> None:
    """Replace what the report says of `source`."""
    lines = report.read_text(encoding="utf-8").splitlines() if report.exists() else []
    others = [line for line in lines if json.loads(line)["file"] != source]
    if lines or bad:
        report.parent.mkdir(parents=True, exist_ok=True)
        own = [json.dumps(dataclasses.asdict(record)) for record in bad]
        report.write_text("".join(f"{line}\n" for line in others + own), "utf-8")
