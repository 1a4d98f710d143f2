import dataclasses
import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_jax.data.records import (
    Comparison,
    Dialogue,
    Prompt,
    RecordError,
    Response,
    read_records,
    to_json,
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
CUT = dataclasses.replace(COMPARISON, ended_b=False, tokens_a=[5, 1], tokens_b=[7])

CALL = ({"role": "assistant", "content": "f()", "metadata": "f"},)
CALL = ({"role": "system", "content": "", "tools": [{"name": "f"}]}, USER, *CALL)


@pytest.mark.parametrize(
    "record",
    [Dialogue((USER, ASSISTANT), "greeting"), Dialogue(CALL), PROMPT, COMPARISON, CUT],
)
def test_what_is_written_is_read(tmp_path, record):
    path = tmp_path / "records.jsonl"
    write_records(path, [record, record])
    assert read_records(path, type(record)) == [record, record]


def test_gzip_is_read(tmp_path):
    path = tmp_path / "records.jsonl.gz"
    line = json.dumps({"messages": [USER, ASSISTANT]})
    path.write_bytes(gzip.compress(f"{line}\n\n{line}\n".encode()))
    assert len(read_records(path, Dialogue)) == 2


def test_chosen_and_rejected_follow_the_preference():
    assert (COMPARISON.chosen, COMPARISON.rejected) == ("no", "yes")
    assert CUT.responses == (Response("no", False, [7]), Response("yes", True, [5, 1]))


def test_a_record_that_does_not_say_otherwise_holds_whole_texts(tmp_path):
    path = tmp_path / "records.jsonl"
    write_records(path, [CUT])
    line = json.loads(path.read_text())
    new = [f"{name}_{side}" for name in ("ended", "tokens") for side in "ab"]
    path.write_text(json.dumps({k: v for k, v in line.items() if k not in new}))
    assert read_records(path, Comparison) == [COMPARISON]


BAD_FIELDS = {
    "no messages": (Dialogue, {}, "messages", "must be a list"),
    "null messages": (Dialogue, {"messages": None}, "messages", "must be a list"),
    "no message": (Dialogue, {"messages": []}, "messages", "at least one"),
    "a message that is text": (
        Dialogue,
        {"messages": ["a"]},
        "messages[0]",
        "must be an object, not str",
    ),
    "an unknown role": (
        Dialogue,
        {"messages": [USER, {"role": "boss", "content": "x"}]},
        "messages[1].role",
        "must be one of .*, not 'boss'",
    ),
    "content that is a number": (
        Dialogue,
        {"messages": [{"role": "user", "content": 3}]},
        "messages[0].content",
        "must be text, not number",
    ),
    "metadata that is no text": (
        Dialogue,
        {"messages": [USER, ASSISTANT | {"metadata": ["weather"]}]},
        "messages[1].metadata",
        "must be text, not list",
    ),
    "tools that are no list": (
        Dialogue,
        {"messages": [USER | {"tools": {"name": "weather"}}, ASSISTANT]},
        "messages[0].tools",
        "must be a list, not dict",
    ),
    "a call in a field that no chat format writes": (
        Dialogue,
        {"messages": [USER, {"role": "assistant", "tool_calls": [{"id": "x"}]}]},
        "messages[1].tool_calls",
        "give the tool's name as metadata",
    ),
    "no answer": (
        Dialogue,
        {"messages": [USER]},
        "messages",
        "must end with the assistant",
    ),
    "no question": (
        Prompt,
        {"id": "x", "messages": [USER, ASSISTANT]},
        "messages",
        "must end with the user",
    ),
    "a later version": (Dialogue, {"version": 2}, "version", "reads version 1"),
    "an unknown preference": (
        Comparison,
        {"preference": "c"},
        "preference",
        "must be one of .* not 'c'",
    ),
    "a prompt that is text": (
        Comparison,
        {"prompt": "Hi?"},
        "prompt",
        "must be an object, not str",
    ),
    "a fault deep in the prompt": (
        Comparison,
        {"prompt": {"id": "x", "messages": [{"role": "user", "content": None}]}},
        "prompt.messages[0].content",
        "is missing or null",
    ),
    "an end that is text": (
        Comparison,
        {"ended_a": "no"},
        "ended_a",
        "must be true or false, not str",
    ),
    "token ids that are text": (
        Comparison,
        {"tokens_b": "5 6"},
        "tokens_b",
        "must be a list of token ids",
    ),
    "token ids that are none": (
        Comparison,
        {"tokens_b": [5, -1]},
        "tokens_b",
        "must be a list of token ids",
    ),
    "an unknown criterion": (
        Comparison,
        {"criteria": {"wit": "a"}},
        "criteria",
        "helpfulness, safety, fluency .* 'wit'",
    ),
    "a criterion that is a list": (
        Comparison,
        {"criteria": {"safety": ["a"]}},
        "criteria",
        "must give",
    ),
    "negative seconds": (Comparison, {"seconds": -1}, "seconds", "0 or more"),
    "true seconds": (Comparison, {"seconds": True}, "seconds", "number, not bool"),
    "endless seconds": (Comparison, {"seconds": 10**400}, "seconds", "0 or more"),
}
WHOLE = {
    Dialogue: Dialogue((USER, ASSISTANT)),
    Prompt: PROMPT,
    Comparison: COMPARISON,
}


def as_json(record) -> dict:
    return json.loads(json.dumps(record, default=to_json))


@pytest.mark.parametrize("name", BAD_FIELDS)
def test_a_bad_field_is_named_with_its_file_and_line(tmp_path, name):
    kind, change, field, message = BAD_FIELDS[name]
    path = tmp_path / "records.jsonl"
    good = as_json(WHOLE[kind])
    bad = {} if change == {} else good | change
    path.write_text(f"{json.dumps(good)}\n{json.dumps(bad)}\n")
    with pytest.raises(RecordError, match=message) as error:
        read_records(path, kind)
    assert f"{path}, line 2, field '{field}': " in str(error.value)
    # The same line is left out when the caller says so, and listed either way.
    report = tmp_path / "bad.jsonl"
    read = read_records(path, kind, on_bad_record="skip", report=report)
    assert read == [WHOLE[kind]]
    (listed,) = map(json.loads, report.read_text().splitlines())
    assert (listed["file"], listed["line"], listed["field"]) == (str(path), 2, field)


def test_a_missing_or_empty_file_is_a_clear_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file"):
        read_records(tmp_path / "none.jsonl", Prompt)
    (tmp_path / "empty.jsonl").write_text("\n")
    for on_bad_record in ("error", "skip"):
        with pytest.raises(RecordError, match="holds no records"):
            read_records(tmp_path / "empty.jsonl", Prompt, on_bad_record=on_bad_record)


def test_what_could_not_be_read_again_is_not_written(tmp_path):
    bad = dataclasses.replace(COMPARISON, info={"temperature": float("nan")})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_records(tmp_path / "x.jsonl", [bad])
    assert not (tmp_path / "x.jsonl").exists()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "id", "messages", "x"]), inner
        )
    ),
    max_leaves=6,
)


@settings(deadline=None)
@given(st.data())
def test_any_value_in_any_field_is_read_or_named(data):
    kind = data.draw(st.sampled_from(list(WHOLE)))
    record = as_json(WHOLE[kind])
    field = data.draw(st.sampled_from(sorted(record)))
    record[field] = data.draw(json_values)
    try:
        read = kind.from_json(record)
    except RecordError as error:
        assert error.field.startswith(field)
    else:
        assert isinstance(read, kind)
