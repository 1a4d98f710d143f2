import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_jax.data.records import (
    Comparison,
    Dialogue,
    Prompt,
    RecordError,
    Response,
    read_records,
    write_records,
)

USER = {"role": "user", "content": "Hi?"}
ASSISTANT = {"role": "assistant", "content": "你好"}
PROMPT = Prompt("p1", (USER,), "greeting", {"kind": "x"})
COMPARISON = Comparison(
    PROMPT,
    "yes",
    "no",
    "b",
    annotator="ann",
    criteria={"safety": "tie"},
    shown_first="a",
    seconds=1.5,
    time="2026-11-21T09:00:00+00:00",
    task="t1",
    info={"source": "x"},
)
RESPONSE = Response(PROMPT, "yes", "runs/sft", {"temperature": 1.0})


@pytest.mark.parametrize("name", ["records.jsonl"])
@pytest.mark.parametrize(
    "record", [Dialogue((USER, ASSISTANT), "greeting"), PROMPT, RESPONSE, COMPARISON]
)
def test_what_is_written_is_read(tmp_path, record, name):
    write_records(tmp_path / name, [record, record])
    assert read_records(tmp_path / name, type(record)) == [record, record]


def test_gzip_is_read(tmp_path):
    path = tmp_path / "records.jsonl.gz"
    line = json.dumps({"messages": [USER, ASSISTANT]})
    path.write_bytes(gzip.compress(f"{line}\n\n{line}\n".encode()))
    assert len(read_records(path, Dialogue)) == 2


def test_chosen_and_rejected_follow_the_preference():
    assert (COMPARISON.chosen, COMPARISON.rejected) == ("no", "yes")


GOOD = json.dumps({"messages": [USER, ASSISTANT]})
BAD_LINES = {
    "half a line": (GOOD[:20].encode(), "not JSON"),
    "not UTF-8": (b'{"messages": "\xff\xfe"}', "not UTF-8"),
    "a list": (b"[1, 2]", "must be a JSON object, not list"),
    "no messages": (b"{}", "field 'messages' must be a list"),
    "null messages": (b'{"messages": null}', "field 'messages' must be a list"),
    "a message that is text": (
        b'{"messages": ["a"]}',
        r"messages\[0\]' must be an obj",
    ),
    "an unknown role": (
        b'{"messages": [{"role": "boss", "content": "x"}]}',
        "must be one of .*, not 'boss'",
    ),
    "content that is a number": (
        b'{"messages": [{"role": "user", "content": 3}]}',
        r"messages\[0\]': field 'content' must be text, not int",
    ),
    "no answer": (
        json.dumps({"messages": [USER]}).encode(),
        "must end with the assistant",
    ),
    "deep nesting": (b"[" * 100_000, "not JSON"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_named_with_its_file_and_number(tmp_path, name):
    line, message = BAD_LINES[name]
    path = tmp_path / "sft.jsonl"
    path.write_bytes(GOOD.encode() + b"\n" + line + b"\n")
    with pytest.raises(RecordError, match=message) as error:
        read_records(path, Dialogue)
    assert f"{path}, line 2" in str(error.value)


def test_a_truncated_gzip_says_how_far_it_was_read(tmp_path):
    path = tmp_path / "sft.jsonl.gz"
    path.write_bytes(gzip.compress((GOOD + "\n").encode() * 5000)[:-30])
    with pytest.raises(RecordError, match="not a whole gzip file"):
        read_records(path, Dialogue)


def test_a_missing_or_empty_file_is_a_clear_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file"):
        read_records(tmp_path / "none.jsonl", Prompt)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(RecordError, match="holds no records"):
        read_records(tmp_path / "empty.jsonl", Prompt)


def test_an_unknown_preference_is_refused(tmp_path):
    path = tmp_path / "comparisons.jsonl"
    write_records(path, [COMPARISON])
    path.write_text(path.read_text().replace('"preference": "b"', '"preference": "c"'))
    with pytest.raises(RecordError, match=r"must be one of .* not 'c'"):
        read_records(path, Comparison)


@given(st.binary(max_size=200))
def test_any_bytes_give_records_or_a_record_error(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "x.jsonl"
    path.write_bytes(data)
    for kind in (Dialogue, Prompt, Comparison):
        with pytest.raises(RecordError):
            read_records(path, kind)
