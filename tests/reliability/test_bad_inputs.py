"""Data, files and calls that cannot work, and the message that each gives: what, where,
what to do. One table a kind; every row is a test, see also test_bad_configs.py.
"""

import gzip
import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from rlhf_jax.data.reading.json_lines import RecordError
from rlhf_jax.data.reading.layouts import comparisons_of
from rlhf_jax.data.reading.rows import scan_rows
from rlhf_jax.data.records import Comparison, Dialogue, Prompt, read_records
from rlhf_jax.data.tokenizers.tokenizer import load_tokenizer, train_tokenizer
from rlhf_jax.generation.sampling import Sampling
from rlhf_jax.models import huggingface
from rlhf_jax.models.inputs import check_inputs
from rlhf_jax.models.presets import preset
from rlhf_jax.parallel.mesh import check_batch, make_mesh
from rlhf_jax.training import suspects, weights
from rlhf_jax.training.workdir import open_workdir, read_summary

# --- Records: kind, line, message ---

USER = {"role": "user", "content": "Hi"}
BOT = {"role": "assistant", "content": "Hello"}
ASKED = {"id": "p", "messages": [USER]}
PAIR = {"prompt": ASKED, "response_a": "x", "response_b": "y", "preference": "a"}

RECORDS = [
    (Dialogue, b"{", r"line 1.*not JSON"),
    (Dialogue, b"[1]", r"line 1.*must be a JSON object, not list"),
    (Dialogue, b"null", r"must be a JSON object, not null"),
    (Dialogue, b'"text"', r"must be a JSON object"),
    (Dialogue, b"\xff\xfe", r"not UTF-8.* at byte 0"),
    (Dialogue, b"{}", r"field 'messages': must be a list of at least one message"),
    (Dialogue, b'{"a": 1, "a": 2}', r"field 'a': occurs twice"),
    (Dialogue, b'{"a": NaN}', r"NaN|not finite"),
    (Dialogue, b'{"a": Infinity}', r"Infinity|not finite"),
    (Dialogue, b'{"a": "\\ud800"}', r"field 'a': holds half of a surrogate pair"),
    (Dialogue, b'{"a":' + b"[" * 200 + b"]" * 200 + b"}", r"nested deeper|not JSON"),
    (Dialogue, b"", r"holds no records"),
    (Dialogue, b"\n\n", r"holds no records"),
    (Dialogue, {"messages": []}, r"'messages': must be a list of at least one"),
    (Dialogue, {"messages": "Hi"}, r"'messages': must be a list"),
    (Dialogue, {"messages": [1]}, r"'messages\[0\]': must be an object, not"),
    (Dialogue, {"messages": [USER]}, r"'messages': must end with the assistant"),
    (Dialogue, {"messages": [{"role": "user"}]}, r"messages\[0\].content': is missing"),
    (
        Dialogue,
        {"messages": [USER | {"content": 1}]},
        r"content': must be text, not number",
    ),
    (
        Dialogue,
        {"messages": [USER | {"role": "x"}]},
        r"role': must be one of",
    ),
    (Dialogue, {"messages": [USER, BOT], "intent": 1}, r"'intent': must be text"),
    (Dialogue, {"messages": [USER, BOT], "version": 9}, r"'version': is '9'; .* reads"),
    (Prompt, {"id": "p", "messages": [USER, BOT]}, r"must end with the user"),
    (Prompt, ASKED | {"id": 7}, r"field 'id': must be text, not number"),
    (Prompt, ASKED | {"task": [1]}, r"field 'task': must be an object, not list"),
    (Comparison, {}, r"field 'prompt': must be an object, not null"),
    (Comparison, {"prompt": {}}, r"field 'prompt.messages'"),
    (
        Comparison,
        PAIR | {"preference": "c"},
        r"'preference': must be one of \('a', 'b'",
    ),
    (Comparison, PAIR | {"preference": None}, r"'preference': is missing or null"),
    (Comparison, PAIR | {"response_a": 1}, r"'response_a': must be text"),
    (Comparison, PAIR | {"shown_first": "left"}, r"'shown_first': must be one of"),
    (Comparison, PAIR | {"seconds": -1}, r"'seconds': must be seconds, 0 or more"),
    (Comparison, PAIR | {"seconds": "1"}, r"'seconds': must be a number, not str"),
    (Comparison, PAIR | {"seconds": True}, r"'seconds': must be a number"),
    (Comparison, PAIR | {"criteria": {"x": "a"}}, r"'criteria': must give helpfulness"),
    (Comparison, PAIR | {"criteria": "a"}, r"'criteria': must be an object"),
    (Comparison, PAIR | {"info": 1}, r"'info': must be an object"),
    (Comparison, PAIR | {"annotator": 3}, r"'annotator': must be text"),
]


@pytest.mark.parametrize(("kind", "line", "message"), RECORDS)
def test_a_record(kind, line, message, tmp_path):
    content = line if isinstance(line, bytes) else json.dumps(line).encode()
    path = tmp_path / "data.jsonl"
    path.write_bytes(content + b"\n" if content else b"")
    with pytest.raises(RecordError, match=message) as error:
        read_records(path, kind)
    assert str(path) in str(error.value)


# --- Rows of published preference sets: layout, row, message ---

ROWS = [
    ("nope", {}, r"layout='nope' is unknown; there are: "),
    ("", {"x": 1}, r"no known layout has the fields x\. .*each: dialogues, text"),
    ("", {}, r"no known layout has the fields"),
    ("", {"chosen": 1, "rejected": "y"}, r"'chosen' must be"),
    ("dialogues", {"chosen": "x"}, r"'rejected' is missing"),
    ("scored", {"prompt": "x"}, r"field '\w+' (is|must)"),
]


@pytest.mark.parametrize(("layout", "row", "message"), ROWS)
def test_a_row(layout, row, message):
    with pytest.raises(ValueError, match=message):
        comparisons_of(row, layout)


# --- Files and folders: name -> content, what reads it, message ---


def published(folder: Path):
    return huggingface.load(folder, dtype="float32", param_dtype="float32")


CONFIG_JSON = json.dumps({"model_type": "chatglm"})
FILES = [
    ({}, lambda p: read_records(p / "x.jsonl", Prompt), r"There is no file .*x.jsonl"),
    ({"x.jsonl.gz": b"rubbish"}, lambda p: read_records(p / "x.jsonl.gz", Prompt),
     r"x.jsonl.gz"),
    ({"x.jsonl.gz": gzip.compress(b'{"id": "p"}' * 99)[:40]},
     lambda p: read_records(p / "x.jsonl.gz", Prompt), r"x.jsonl.gz"),
    ({}, lambda p: list(scan_rows(str(p / "none"), "train")), r"There is no file or"),
    ({}, lambda p: list(scan_rows(str(p), "train")), r"is empty"),
    ({}, load_tokenizer, r"No tokenizer at .*: it has no "),
    ({"tokenizer.json": b"{"}, load_tokenizer, r"tokenizer at .* cannot be read"),
    ({"tokenizer.json": b"{}"}, load_tokenizer, r"tokenizer at .* cannot be read"),
    ({"tokenizer.json": b"{}", "tokenizer_config.json": b"["}, load_tokenizer,
     r"tokenizer_config.json|cannot be read"),
    ({"tokenizer.model": b"rubbish"}, load_tokenizer, r"tokenizer"),
    ({"vocab.txt": b"x"}, load_tokenizer, r"No tokenizer at|cannot be read"),
    ({}, weights.load_model, r"holds no model: neither checkpoints/"),
    ({"config.json": b"{}"}, weights.load_model, r"holds no model"),
    ({"config.json": b'{"config": {}}'}, weights.load_model,
     r"holds no model: its run ended before the first checkpoint"),
    ({"config.json": b'{"model_type": "glm"}'}, weights.load_model,
     r"has no \*.safetensors"),
    ({"config.json": b"[" * 100_000}, weights.load_model, r"config.json is damaged"),
    ({}, published, r"has no config.json"),
    ({"config.json": CONFIG_JSON.encode()}, published, r"has no \*.safetensors"),
    ({"config.json": CONFIG_JSON.encode(), "pytorch_model.bin": b"\x80\x04."},
     published, r"are pickles, which can run code, and are not read here"),
    ({"config.json": b"{", "a.safetensors": b""}, published,
     r"config.json|a.safetensors"),
    ({"config.json": b'{"model_type": "gpt2"}', "a.safetensors": b"\x02" + bytes(7)
      + b"{}"}, published, r"model_type 'gpt2' is not one of 'chatglm'"),
    ({"config.json": CONFIG_JSON.encode(), "a.safetensors": b"\x02" + bytes(7) + b"{}"},
     published, r"config.json of a 'chatglm' model has no"),
    ({"config.json": CONFIG_JSON.encode(), "a.safetensors": b"rub"}, published,
     r"a.safetensors"),
    ({"config.json": CONFIG_JSON.encode(), "a.safetensors": b"\xff" * 32},
     published, r"a.safetensors"),
    ({"config.json": CONFIG_JSON.encode(), "model.safetensors.index.json": b"{"},
     published, r"model.safetensors.index.json"),
    ({"config.json": CONFIG_JSON.encode(), "model.safetensors.index.json":
      b'{"weight_map": {"a": "b.safetensors"}}'}, published,
     r"lacks files of its index: \['b.safetensors'\]"),
    ({"summary.json": b"{"}, read_summary, r"summary.json is damaged"),
    ({"b.npz": b""}, lambda p: suspects.load_batch(p / "b.npz"),
     r"b.npz is not a batch that a run saved"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "read", "message"), FILES)
def test_a_file(files, read, message, tmp_path):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        read(tmp_path)
    assert not isinstance(error.value, json.JSONDecodeError)


def test_a_broken_config_of_a_workdir(tmp_path):
    config = importlib.import_module("configs.sft").get_config()
    (tmp_path / "config.json").write_text('{"config": ')
    (tmp_path / "summary.json").write_text("{}")  # or it is written anew
    with pytest.raises(ValueError, match=r"config.json is damaged: .* --workdir"):
        open_workdir(tmp_path, config)


# --- Shapes and numbers of public functions: call, message ---

MICRO = preset("micro")
GOOD = {"max_new_tokens": 4, "temperature": 1.0, "top_k": 0, "top_p": 1.0}


def sampling(**changes) -> Sampling:
    fields = {
        "num_tokens": 9,
        "stop_ids": (1,),
        "pad_id": 0,
        "min_new_tokens": 0,
    } | GOOD
    return Sampling(**fields | changes)


def tokens(*rows) -> np.ndarray:
    return np.array(rows, np.int32)


CALLS = [
    (lambda: check_inputs(np.zeros(3, np.int32), None, MICRO), r"integers \[B, T\]"),
    (lambda: check_inputs(np.zeros((1, 3)), None, MICRO), r"integers \[B, T\]"),
    (lambda: check_inputs(tokens([1, 2]), np.ones((1, 3), bool), MICRO), r"bool"),
    (lambda: check_inputs(tokens([1, 2]), np.ones((1, 2)), MICRO), r"bool"),
    (lambda: check_inputs(tokens([1]), np.zeros((1, 1), bool), MICRO), r"are empty"),
    (lambda: check_inputs(np.ones((1, 999), int), None, MICRO), r"context is 256"),
    (lambda: check_inputs(tokens([1, 2, 3]), np.array([[1, 0, 1]]) > 0, MICRO),
     r"have holes: padding belongs"),
    (lambda: check_inputs(tokens([1, 512]), None, MICRO), r"outside the vocab"),
    (lambda: check_inputs(tokens([-1, 5]), None, MICRO), r"Token -1 in row 0"),
    (lambda: sampling(max_new_tokens=0), r"max_new_tokens=0 must be at least 1"),
    (lambda: sampling(temperature=-1.0), r"temperature=-1.0 must be 0"),
    (lambda: sampling(temperature=float("nan")), r"temperature=nan must be 0"),
    (lambda: sampling(top_p=0.0), r"top_p=0.0 must be above 0"),
    (lambda: sampling(top_k=10), r"top_k=10 must be 0 \(off\) up to"),
    (lambda: sampling(stop_ids=(9,)), r"stop or pad ids \[9\] are outside"),
    (lambda: sampling(pad_id=-1), r"stop or pad ids \[-1\] are outside"),
    (lambda: preset("huge"), r"No preset 'huge'\. Known: benchmark, chatglm"),
    (lambda: preset("micro", num_kv_heads=3), r"num_heads=2 not a multiple of"),
    (lambda: preset("micro", attention="fast"), r"attention='fast': not in"),
    (lambda: make_mesh((1, 1)), r"give a size for each of data, fsdp and tensor"),
    (lambda: make_mesh((-1, -1, 1)), r"positive numbers, at most one of them -1"),
    (lambda: make_mesh(("all",)), r"give a size for each of data, fsdp and tensor"),
    (lambda: make_mesh((0.5, 2, 8)), r"positive numbers, at most one of them -1"),
    (lambda: make_mesh((0, 1, 1)), r"positive numbers, at most one of them -1"),
    (lambda: make_mesh((3, 1, 1)), r"mesh=\(3, 1, 1\) does not make up 8 devices"),
    (lambda: check_batch("batch_size", 0), r"batch_size=0 in 1 parts"),
    (lambda: train_tokenizer(["a"], 10, "x"), r"vocab_size=10 must be at least"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), CALLS)
def test_a_call(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
