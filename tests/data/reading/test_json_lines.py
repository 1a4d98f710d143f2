"""Every byte of a file is read, or named in the report: nothing is lost silently."""

import gzip
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlhf_jax.data.reading import json_lines
from rlhf_jax.data.reading.json_lines import RecordError, keep_good, scan_json_lines

GOOD = b'{"n": 1}'
BOM = b"\xef\xbb\xbf"
BAD_LINES = {
    "half a line": (b'{"messages": [{"ro', "", "not JSON: Invalid control character"),
    "not UTF-8": (b'{"x": "\xff\xfe"}', "", "not UTF-8: invalid start byte at byte 7"),
    "UTF-16": ('{"x": 1}'.encode("utf-16"), "", "not UTF-8"),
    "zeros, as a crash leaves them": (b"\0" * 64, "", "not JSON"),
    "a list": (b"[1, 2]", "", "must be a JSON object, not list"),
    "null": (b"null", "", "must be a JSON object, not null"),
    "two objects": (GOOD + GOOD, "", "not JSON: Extra data"),
    "a name twice": (b'{"a": {"x": 1, "x": 2}}', "x", "occurs twice"),
    "NaN": (b'{"a": {"x": [NaN]}}', "a.x[0]", "is nan, which is not finite"),
    "an overflow": (b'{"x": 1e999}', "x", "is inf, which is not finite"),
    "5,000 digits": (b'{"x": ' + b"1" * 5000 + b"}", "", "not JSON: Exceeds the limit"),
    "half a character": (b'{"x": "\\ud83d"}', "x", "half of a surrogate pair"),
    "such a name": (b'{"\\ud83d": 1}', "", "half of a surrogate pair"),
    "deep nesting": (b"[" * 100_000, "", "not JSON"),
    "nesting": (
        b'{"x": ' + b"[" * 33 + b"]" * 33 + b"}",
        "x" + "[0]" * 32,
        "nested deeper than 32",
    ),
    "a huge field": (
        b'{"x": "' + b"y" * (json_lines.MAX_TEXT + 1) + b'"}',
        "x",
        "more than 1048576 characters",
    ),
}


def read(path, on_bad_record="error", report=None) -> list[dict]:
    return keep_good(
        scan_json_lines(path),
        lambda row: row,
        source=path,
        on_bad_record=on_bad_record,
        report=report,
    )


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_named_and_the_others_are_kept(tmp_path, name):
    line, field, reason = BAD_LINES[name]
    path, report = tmp_path / "x.jsonl", tmp_path / "bad.jsonl"
    path.write_bytes(GOOD + b"\n" + line + b"\n\n" + GOOD)
    where = f", field '{field}'" if field and name != "such a name" else ""
    with pytest.raises(RecordError) as error:
        read(path, report=report)
    assert f"1 bad of 3 (all in {report})" in str(error.value)
    assert f"{path}, line 2{where}: " in str(error.value)
    assert reason in str(error.value)
    (listed,) = map(json.loads, report.read_text().splitlines())
    assert reason in listed.pop("reason")
    assert listed == {"file": str(path), "line": 2, "field": field}
    assert read(path, "skip", report) == [{"n": 1}] * 2
    assert len(report.read_text().splitlines()) == 1  # replaced, not added


@pytest.mark.parametrize("length", [50, 99, 100, 101, 200, 350])
def test_a_line_above_the_limit_is_passed_over_in_parts(tmp_path, monkeypatch, length):
    monkeypatch.setattr(json_lines, "MAX_LINE", 100)
    line = b'{"x": "' + b"y" * (length - 9) + b'"}'
    path = tmp_path / "x.jsonl"
    path.write_bytes(GOOD + b"\n" + line + b"\n" + GOOD)
    rows = list(scan_json_lines(path))
    assert [number for number, _ in rows] == [1, 2, 3]
    assert isinstance(rows[1][1], dict) == (length + 1 <= 100)
    assert rows[0][1] == rows[2][1] == {"n": 1}


def test_marks_of_other_systems_are_read(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(BOM + GOOD + b"\r\n\r\n" + GOOD + b"\r\n")
    assert read(path) == [{"n": 1}] * 2


@pytest.mark.parametrize("kept", [0, 5, 40, 200, -30, -8, -1])
def test_of_a_truncated_gzip_the_whole_lines_stay(tmp_path, kept):
    lines = b"".join(b'{"n": %d}\n' % n for n in range(5000))
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(lines)[:kept] or b"\x1f")
    found = list(scan_json_lines(path))
    *good, (number, error) = found
    assert [row["n"] for _, row in good] == list(range(len(good)))
    assert number == len(good) + 1
    assert "not a whole gzip file" in error.problem
    if kept in (-8, -1):  # only the checksum is gone
        assert len(good) == 5000
    with pytest.raises(RecordError, match="not a whole gzip file"):
        read(path)


def test_a_gzip_that_is_none_is_named(tmp_path):
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(GOOD)
    with pytest.raises(RecordError, match="line 1: not a whole gzip file"):
        read(path)


def test_the_report_keeps_what_it_says_of_other_files(tmp_path):
    report = tmp_path / "bad.jsonl"
    for name in ("a", "b", "a"):
        (tmp_path / name).write_bytes(GOOD + b"\n{\n")
        read(tmp_path / name, "skip", report)
    (tmp_path / "b").write_bytes(GOOD)
    read(tmp_path / "b", "skip", report)
    listed = [json.loads(line)["file"] for line in report.read_text().splitlines()]
    assert listed == [str(tmp_path / "a")]


def test_a_long_list_of_bad_lines_is_cut_and_counted(tmp_path):
    (tmp_path / "x").write_bytes(GOOD + b"\n{" * 8)
    with pytest.raises(RecordError, match=r"(?s)8 bad of 9:.*line 6:.*and 3 more"):
        read(tmp_path / "x")


def test_an_unknown_way_with_bad_records_is_refused(tmp_path):
    (tmp_path / "x").write_bytes(GOOD)
    with pytest.raises(ValueError, match="must be 'error' or 'skip'"):
        read(tmp_path / "x", "ignore")


def is_json_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(st.none() | st.binary(max_size=60), max_size=12),
    zipped=st.booleans(),
)
def test_good_lines_survive_any_bytes_between_them(tmp_path, lines, zipped):
    """None stands for a good line; what the others hold is any bytes."""
    lines = [None if line is None else line.replace(b"\n", b"") for line in lines]
    data = b"".join((GOOD if line is None else line) + b"\n" for line in lines)
    path = tmp_path / ("x.jsonl.gz" if zipped else "x.jsonl")
    path.write_bytes(gzip.compress(data) if zipped else data)
    found = list(scan_json_lines(path))
    numbers = {number for number, _ in found}
    good = {number for number, row in found if row == {"n": 1}}
    for number, line in enumerate(lines, start=1):
        if line is None:
            assert number in good
        elif line.strip() not in (b"", BOM) and not is_json_object(line):
            assert number in numbers - good
    assert all(isinstance(row, dict | RecordError) for _, row in found)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_any_bytes_as_gzip_are_read_or_named(tmp_path, data):
    path = tmp_path / "x.jsonl.gz"
    whole = gzip.compress(b"{}\n" * 50)
    for content in (data, whole[:10] + data, whole + data):
        path.write_bytes(content)
        for _, row in scan_json_lines(path):
            assert isinstance(row, dict | RecordError)


@pytest.mark.parametrize(
    "line",
    [b"{}", b'{"line": 1}', b"[1]", b"null", b"half a li", b"\xff\xfe", b"[" * 9999],
)
def test_a_report_of_another_origin_is_kept(tmp_path, line):
    path, report = tmp_path / "x.jsonl", tmp_path / "bad_records.jsonl"
    path.write_bytes(GOOD + b"\nbad\n")
    other = json.dumps({"file": "other.jsonl", "line": 3, "field": "", "reason": "r"})
    report.write_bytes(line + b"\n" + other.encode() + b"\n")
    for _ in range(2):
        assert read(path, "skip", report) == [{"n": 1}]
        assert report.read_bytes().startswith(line + b"\n" + other.encode() + b"\n")
        assert report.read_bytes().count(b"\n") == 3


def test_lines_that_are_not_wanted_are_not_parsed(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"n": 1}\n\nbroken\n{"n": 3}\nbroken\n')
    found = list(scan_json_lines(path, iter([True, False, True])))
    assert found[:3] == [(1, {"n": 1}), (3, None), (4, {"n": 3})]
    assert isinstance(found[3][1], RecordError)  # of what nothing is said is parsed
