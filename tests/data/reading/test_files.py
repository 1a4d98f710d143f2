"""Every kind of file gives the same rows; what cannot be read is named by its line."""

import datetime
import decimal
import gzip
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlhf_jax.data.reading.files import READERS, plain, scan_file
from rlhf_jax.data.reading.json_lines import RecordError, each_good
from rlhf_jax.data.reading.layouts import comparisons_of

# Texts that a reader of tables may take for something else.
WORDS = [
    "NA",
    "null",
    "N/A",
    "nan",
    "None",
    "True",
    "5",
    "007",
    "1.0",
    "1e5",
    "-0",
    "∞",
]
WORDS += ["2026-11-27", "12:30", "#N/A", "inf", "=1+1", "a,b", 'say "hi"']
WORDS += [
    "two\nlines",
    "line\u2028separator",
    "你好",
    "\u00a0x",
    "\x1f",
    "[1, 2]",
    "{}",
]
ROWS = [{"prompt": "q", "chosen": word, "rejected": "no"} for word in WORDS]


def table(rows: list[dict], delimiter: str) -> bytes:
    names = list(rows[0])
    cells = [names, *([row[name] for name in names] for row in rows)]
    quoted = [['"' + cell.replace('"', '""') + '"' for cell in row] for row in cells]
    return "\n".join(map(delimiter.join, quoted)).encode()


def lines(rows: list[dict]) -> bytes:
    return b"\n".join(json.dumps(row).encode() for row in rows)


def parquet(rows: list[dict], path) -> bytes:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path.read_bytes()


def write(path, rows) -> None:
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    content = {
        "jsonl": lambda: lines(rows),
        "json": lambda: json.dumps(rows, indent=1, ensure_ascii=False).encode(),
        "csv": lambda: table(rows, ","),
        "tsv": lambda: table(rows, "\t"),
        "parquet": lambda: parquet(rows, path),
    }[kind]()
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)


NAMES = [f"x{kind}" for kind in READERS]
NAMES += [f"x{kind}.gz" for kind in READERS if kind != ".parquet"]


@pytest.mark.parametrize("name", NAMES)
def test_text_is_text_in_every_kind_of_file(tmp_path, name):
    write(tmp_path / name, ROWS)
    rows = [row for _, row in scan_file(tmp_path / name)]
    assert rows == ROWS
    chosen = [comparisons_of(row)[0][0].chosen for row in rows if row["chosen"].strip()]
    assert chosen == [word.strip() for word in WORDS if word.strip()]


MARK = b"\xef\xbb\xbf"


@pytest.mark.parametrize("name", [n for n in NAMES if "parquet" not in n])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_marks_and_line_ends_of_other_systems_are_read(tmp_path, name, end):
    write(tmp_path / "y.jsonl", [])
    plain_name = name.removesuffix(".gz")
    rows = [{"a": "x", "b": "你"}, {"a": "y", "b": "z"}]
    write(tmp_path / plain_name, rows)
    content = MARK + (tmp_path / plain_name).read_bytes().replace(b"\n", end) + end
    (tmp_path / name).write_bytes(content)
    if name.endswith(".gz"):
        (tmp_path / name).write_bytes(gzip.compress(content))
    assert [row for _, row in scan_file(tmp_path / name)] == rows


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv"])
def test_a_gzipped_file_is_read_whatever_its_name(tmp_path, name):
    write(tmp_path / name, ROWS)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(gzip.compress(content))
    assert [row for _, row in scan_file(tmp_path / name)] == ROWS


def test_an_empty_cell_is_a_null_and_a_row_may_span_lines(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('a,b\n"1\n2",\n\n,3\n')
    assert list(scan_file(path)) == [
        (2, {"a": "1\n2", "b": None}),
        (5, {"a": None, "b": "3"}),
    ]


def test_messages_in_a_cell_are_read(tmp_path):
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "x"},
    ]
    write(tmp_path / "x.csv", [{"messages": json.dumps(messages)}])
    assert list(scan_file(tmp_path / "x.csv")) == [(2, {"messages": messages})]
    write(tmp_path / "x.csv", [{"messages": str(messages)}])
    ((_, error),) = scan_file(tmp_path / "x.csv")
    assert error.field == "messages"
    assert "as Python prints them: write them as JSON" in str(error)


def test_a_list_of_objects_is_numbered_by_line(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(
        ' [\n{"a": 1},\n\n {"a":\n 2}, 3,\n{"a": 1, "a": 2}, {"a": NaN}\n]\n'
    )
    found = list(scan_file(path))
    assert [number for number, _ in found] == [2, 4, 5, 6, 6]
    assert [row for _, row in found[:2]] == [{"a": 1}, {"a": 2}]
    reasons = ["must be a JSON object, not number", "occurs twice", "is nan"]
    for (_, error), reason in zip(found[2:], reasons, strict=True):
        assert reason in str(error)


BAD = {  # name -> content; lines of good rows, and what the last error says
    "not a list.json": (b'{"data":\n [{"a": 1}]}', 0, "one object over several lines"),
    "cut.json": (b'[{"a": 1},\n{"a": ', 1, "line 2: not JSON, what follows is lost"),
    "open.json": (b'[{"a": 1}', 1, "line 1: not JSON: the list does not end"),
    "comma.json": (b'[{"a": 1}\n{"a": 2}]', 1, "line 2: not JSON, .*: no comma"),
    "more.json": (b'[{"a": 1}]\n{"a": 2}', 1, "line 1: not JSON: more follows"),
    "latin.json": (b'[{"a": "\xe9"}]', 0, "line 1: not UTF-8.*Save the file as text"),
    "latin lines.json": (b'{"a": 1}\n{"a": "\xe9"}', 1, "line 2: not UTF-8"),
    "latin.csv": (b"a,b\n1,2\n\xe9,4\n", 1, "line 3, field 'a': is not UTF-8. Save"),
    "gbk.csv": ("问,答\n1,2".encode("gbk"), 0, "line 1: is not UTF-8. Save the file"),
    "utf16.csv": ("a,b\n1,2\n".encode("utf-16"), 0, "line 1: is not UTF-8"),
    "utf16.jsonl": ('{"a": 1}'.encode("utf-16"), 0, "begins as UTF-16 does. Save"),
    "cells.csv": (b"a,b\n1,2\n1,2,3\n", 1, "line 3: has 3 cells; the first line has 2"),
    "fewer.csv": (b"a,b\n1,2\n1\n", 1, "line 3: has 1 cells"),
    "names.csv": (b"a,a\n1,2\n", 0, "line 1, field 'a': names two columns"),
    "semicolons.csv": (b"a;b\n1;2\n", 0, "must be separated by ',', not ';'"),
    "tabs.csv": (b"a\tb\n1\t2\n", 0, "must be separated by ','"),
    "commas.tsv": (b"a,b\n1,2\n", 0, r"must be separated by '\\t', not ','"),
    "quotes.csv": (b'a,b\n1,2\n"x"y,3\n', 1, "line 3: no table: "),
    "open quote.csv": (b'a,b\n1,2\n"x,3\n4,5\n', 1, "line 3: no table: "),
    "parquet.jsonl": (b"PAR1\xff", 0, "begins as a parquet file does"),
    "excel.csv": (b"PK\x03\x04\xff", 0, "line 1: is not UTF-8"),
    "lines.parquet": (b'{"a": 1}\n', 0, "line 1: not a whole parquet file"),
    "empty.parquet": (b"", 0, "line 1: not a whole parquet file"),
    "cut.csv.gz": (gzip.compress(b"a,b\n1,2\n" * 99)[:-9], None, "not a whole gzip"),
    "cut.json.gz": (gzip.compress(b'[{"a": 1}]')[:-9], 0, "not a whole gzip file"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_named_by_file_and_line(tmp_path, name):
    content, good, message = BAD[name]
    path = tmp_path / name
    path.write_bytes(content)
    rows = [row for _, row in scan_file(path) if not isinstance(row, RecordError)]
    if good is not None:
        assert len(rows) == good
    with pytest.raises(RecordError, match=message) as error:
        list(each_good(scan_file(path), lambda row: row, source=path))
    assert f"{path}, line " in str(error.value)


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv", "x.tsv"])
@pytest.mark.parametrize("content", [b"", b"\n\n", MARK])
def test_an_empty_file_holds_no_records(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RecordError, match=f"{name} holds no records"):
        list(each_good(scan_file(tmp_path / name), dict, source=tmp_path / name))


def test_what_is_no_file_of_rows_is_named(tmp_path):
    (tmp_path / "x.txt").touch()
    with pytest.raises(ValueError, match=r"x.txt has no known ending: name it .jsonl"):
        scan_file(tmp_path / "x.txt")
    with pytest.raises(FileNotFoundError, match="is a folder: name a file in it"):
        scan_file(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"There is no file .*none.jsonl"):
        scan_file(tmp_path / "none.jsonl")


def test_values_of_tables_become_plain_json():
    value = {
        "bytes": b"\xe4\xbd\xa0",
        "array": np.array([[1, 2]]),
        "scalar": np.float32(0.5),
        "missing": float("nan"),
        "object": object(),
        "bool": np.bool_(True),
        "day": datetime.date(2026, 11, 27),
        "time": datetime.datetime(2026, 11, 27, 12, 30),
        "price": decimal.Decimal("1.5"),
    }
    assert plain(value) == {
        "bytes": "你",
        "array": [[1, 2]],
        "scalar": 0.5,
        "missing": None,
        "object": None,
        "bool": True,
        "day": "2026-11-27",
        "time": "2026-11-27T12:30:00",
        "price": 1.5,
    }


PIECES = [b"a", b",", b"\n", b"\r", b'"', b"[", b"]", b"{", b"}", b'{"a": 1}', b"\xff"]
PIECES += [
    b":",
    b"\t",
    b"\0",
    MARK,
    b"\x1f\x8b",
    b"PAR1",
    b"PK",
    b"1",
    b" ",
    b"\xe2\x80",
]
PIECES += [b'"prompt"', b'"chosen"', b'"rejected"', b"null", b"NaN", b"\\ud800"]


@settings(
    deadline=None,
    max_examples=200,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(name=st.sampled_from(NAMES), pieces=st.lists(st.sampled_from(PIECES)))
def test_any_bytes_are_rows_or_errors(tmp_path, name, pieces):
    content = b"".join(pieces)
    for data in (content, gzip.compress(content), table(ROWS[:1], ",") + content):
        (tmp_path / name).write_bytes(data)
        for number, row in scan_file(tmp_path / name):
            assert number > 0
            assert isinstance(row, dict | RecordError)
            if isinstance(row, dict):
                json.dumps(row, allow_nan=False).encode()
