"""Tokenizers: nothing is lost, and text never becomes a special token."""

import builtins
import hashlib
import io
import json
import os
import re
import sys

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rlhf_jax.data.tokenizers.chat import encode_prompt
from rlhf_jax.data.tokenizers.tokenizer import (
    SPECIAL_TOKENS,
    TransformersTokenizer,
    copy_tokenizer,
    has_tokenizer,
    is_readable,
    load_tokenizer,
    train_tokenizer,
)

TEXTS = ["The capital of France is Paris.", "What is 7 plus 5?", "a b a b"] * 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TEXTS, 300, path)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(folder)


def test_the_vocabulary_has_the_size_asked_for_with_specials_last(tokenizer):
    assert tokenizer.vocab_size == 300
    ids = [tokenizer.special_id(name) for name in SPECIAL_TOKENS]
    assert ids == list(range(290, 300))


def test_training_twice_gives_the_same_tokenizer(folder, tmp_path):
    train_tokenizer(TEXTS, 300, tmp_path)
    assert load_tokenizer(tmp_path).fingerprint == load_tokenizer(folder).fingerprint


def test_another_vocabulary_has_another_fingerprint(tokenizer, tmp_path):
    train_tokenizer(TEXTS, 290, tmp_path)
    assert load_tokenizer(tmp_path).fingerprint != tokenizer.fingerprint
    assert len(tokenizer.fingerprint) == len(hashlib.sha256().hexdigest())


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_text_comes_back_whole(tokenizer, text):
    text = text.encode("utf-8", "ignore").decode()  # lone surrogates are not text
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("name", SPECIAL_TOKENS)
def test_a_special_token_in_text_is_only_text(tokenizer, name):
    ids = tokenizer.encode(f"say {name} now")
    assert not set(ids) & {tokenizer.special_id(other) for other in SPECIAL_TOKENS}
    assert tokenizer.decode(ids) == f"say {name} now"


def test_a_batch_is_encoded_as_its_texts_are(tokenizer):
    texts = [*TEXTS[:3], "", f"a {SPECIAL_TOKENS[-2]} b", "你好"]
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]
    assert tokenizer.encode_batch([]) == []


def test_decoding_leaves_special_tokens_out(tokenizer):
    ids = [tokenizer.pad_id, *tokenizer.encode("a b"), tokenizer.special_id("<|user|>")]
    assert tokenizer.decode(ids) == "a b"


def test_pad_and_stops_are_those_of_glm4(tokenizer):
    assert tokenizer.pad_id == tokenizer.special_id("<|endoftext|>")
    names = ("<|endoftext|>", "<|user|>", "<|observation|>")
    assert tokenizer.stop_ids == tuple(map(tokenizer.special_id, names))


def test_an_unknown_special_token_is_an_error_that_lists_the_known(tokenizer):
    with pytest.raises(ValueError, match=r"'<\|robot\|>'.*gMASK"):
        tokenizer.special_id("<|robot|>")


def test_transformers_reads_the_folder_with_the_same_ids(tokenizer, folder):
    theirs = AutoTokenizer.from_pretrained(folder)
    text = "The capital of France is Paris.\n7 + 5"
    assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text)
    assert theirs.convert_tokens_to_ids("<|assistant|>") == tokenizer.special_id(
        "<|assistant|>"
    )


def test_a_missing_folder_is_a_clear_error(tmp_path):
    with pytest.raises(ValueError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path / "nowhere")


def test_code_in_a_tokenizer_folder_is_never_run(folder, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["auto_map"] = {"AutoTokenizer": [None, "evil.Evil"]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(
        "import sys\nsys.evil_ran = True\nclass Evil: ..."
    )
    load_tokenizer(tmp_path)
    assert not hasattr(sys, "evil_ran")


def test_a_vocabulary_too_small_for_the_bytes_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 266"):
        train_tokenizer(TEXTS, 100, tmp_path)


def other_tokenizer(path, **special):
    """A tokenizer of another family, as transformers saves it."""
    words = {word: i for i, word in enumerate(["[UNK]", "</s>", "be", "or", "to"])}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=inner, **special).save_pretrained(path)


def test_a_tokenizer_of_another_make_is_read(tmp_path):
    other_tokenizer(tmp_path, unk_token="[UNK]", eos_token="</s>")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("to be or") == [4, 2, 3]
    assert (tokenizer.pad_id, tokenizer.end_id, tokenizer.stop_ids) == (1, 1, (1,))
    assert tokenizer.vocab_size == 5
    with pytest.raises(ValueError, match="no chat template"):
        encode_prompt([{"role": "user", "content": "to be"}], tokenizer)


def test_answers_also_stop_where_the_models_folder_says(tmp_path):
    other_tokenizer(tmp_path, unk_token="[UNK]", eos_token="</s>")
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [3, 1]}')
    assert load_tokenizer(tmp_path).stop_ids == (1, 3)
    copy_tokenizer(tmp_path, tmp_path / "copy")
    assert load_tokenizer(tmp_path / "copy").stop_ids == (1, 3)


def test_a_tokenizer_that_ends_nothing_is_refused(tmp_path):
    other_tokenizer(tmp_path, unk_token="[UNK]")
    with pytest.raises(ValueError, match="no end-of-text token"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer.json": "{"},
        {"tokenizer_config.json": '{"tokenizer_class": "EvilTokenizer"}'},
        {"tokenizer.model": "not a model"},
        {
            "tokenizer.model": "not a model",
            "tokenizer_config.json": '{"tokenizer_class": "ChatGLMTokenizer", '
            '"chat_format": "chatglm2"}',
        },
    ],
)
def test_what_cannot_be_read_is_a_clear_error(tmp_path, files):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
        load_tokenizer(tmp_path)


def test_copying_leaves_everything_else_behind(folder, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    for name in ("model.safetensors", "config.json", "evil.py"):
        (tmp_path / name).write_text("{}")
    copy_tokenizer(tmp_path, tmp_path / "copy")
    copied = {path.name for path in (tmp_path / "copy").iterdir()}
    assert copied == {"tokenizer.json", "tokenizer_config.json"}
    assert (
        load_tokenizer(tmp_path / "copy").fingerprint
        == load_tokenizer(folder).fingerprint
    )


def test_a_file_that_makes_its_reader_panic_is_refused(tmp_path):
    train_tokenizer(["a few words, a few more words"], 300, tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["continuing_subword_prefix"] = "longer than its tokens"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"tokenizer at .* cannot be read: range end"):
        load_tokenizer(tmp_path)


def edit_json(path, *keys, value=None, drop=False):
    content = node = json.loads(path.read_text()) if path.is_file() else {}
    for key in keys[:-1]:
        node = node[key]
    if drop:
        del node[keys[-1]]
    else:
        node[keys[-1]] = value
    path.write_text(json.dumps(content))


BERT = {"type": "BertPreTokenizer"}
BEHAVIOURS = {
    "a merge less": ("tokenizer.json", "model", "merges", -1),
    "another pre-tokenizer": ("tokenizer.json", "pre_tokenizer", BERT),
    "another splitting": ("tokenizer.json", "pre_tokenizer", "use_regex", False),
    "a normaliser": ("tokenizer.json", "normalizer", {"type": "Lowercase"}),
    "another decoder": ("tokenizer.json", "decoder", {"type": "Fuse"}),
    "pieces that are tokens": ("tokenizer.json", "model", "ignore_merges", True),
    "a token that is not special": ("tokenizer.json", "added_tokens", 3, "special", 0),
    "a token that strips": ("tokenizer.json", "added_tokens", 3, "rstrip", True),
    "another end": ("tokenizer_config.json", "eos_token", "[MASK]"),
    "another padding": ("tokenizer_config.json", "pad_token", "[MASK]"),
    "one more end": ("generation_config.json", "eos_token_id", [5]),
    "a chat template": ("tokenizer_config.json", "chat_template", "{{ messages }}"),
}


@pytest.mark.parametrize("change", BEHAVIOURS)
def test_what_encodes_decodes_or_speaks_otherwise_has_another_fingerprint(
    folder, tmp_path, change
):
    copy_tokenizer(folder, tmp_path / "same")
    copy_tokenizer(tmp_path / "same", tmp_path / "other")
    expected = load_tokenizer(folder).fingerprint
    assert load_tokenizer(tmp_path / "same").fingerprint == expected
    file, *keys, value = BEHAVIOURS[change]
    path = tmp_path / "other" / file
    if change == "a merge less":
        edit_json(path, *keys, value, drop=True)
    else:
        edit_json(path, *keys, value=bool(value) if value == 0 else value)
    assert load_tokenizer(tmp_path / "other").fingerprint != expected


def test_using_a_tokenizer_leaves_its_fingerprint(folder):
    tokenizer = load_tokenizer(folder)
    tokenizer.encode_batch(TEXTS)
    tokenizer.decode(tokenizer.encode(TEXTS[0]))
    again = TransformersTokenizer(tokenizer._inner, ())
    assert again.fingerprint == tokenizer.fingerprint


class Killed(BaseException):
    """An exception that, like a kill, prevents any clean-up."""


def ways_to_write(folder):
    return {
        "train": lambda path: train_tokenizer(TEXTS, 300, path),
        "copy": lambda path: copy_tokenizer(folder, path),
    }


@pytest.mark.parametrize("way", ["train", "copy"])
@pytest.mark.parametrize("there", ["nothing", "empty", "half", "a model"])
def test_a_kill_at_any_step_leaves_no_tokenizer_or_a_whole_one(
    folder, tmp_path, monkeypatch, way, there
):
    """Every call that opens, moves, makes or removes a file may be the last."""
    write, steps = ways_to_write(folder)[way], 0
    expected = load_tokenizer(folder).fingerprint

    def prepare(path):
        if there != "nothing":
            path.mkdir()
        if there == "half":
            (path / "tokenizer.json").write_text('{"version": ')
        if there == "a model":
            (path / "model.safetensors").write_text("weights")

    real = {
        name: getattr(os, name) for name in ("mkdir", "rename", "replace", "unlink")
    }
    real["open"] = io.open

    def killed_at(last):
        count = 0

        def counted(name):
            def call(*args, **kwargs):
                nonlocal count
                count += 1
                if count == last:
                    raise Killed
                return real[name](*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for name in real:
                patch.setattr(io if name == "open" else os, name, counted(name))
            patch.setattr(builtins, "open", counted("open"))
            write(tmp_path / str(last))
        return count

    while True:
        steps += 1
        path = tmp_path / str(steps)
        prepare(path)
        try:
            killed_at(steps)
            break
        except Killed:
            whole = has_tokenizer(path) and load_tokenizer_or_none(path)
            assert not has_tokenizer(path) or there != "nothing" or whole
            write(path)  # the same command again
            assert load_tokenizer(path).fingerprint == expected
            assert not list(tmp_path.glob("*.making"))
    assert steps > 3
    if there == "a model":
        assert (path / "model.safetensors").read_text() == "weights"
    assert load_tokenizer(path).fingerprint == expected


def load_tokenizer_or_none(path):
    return load_tokenizer(path) if is_readable(path) else None


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("tokenizer.json", 0.0),
        ("tokenizer.json", 0.5),
        ("tokenizer.json", None),
        ("tokenizer_config.json", 0.0),
        ("tokenizer_config.json", 0.5),
    ],
)
def test_half_a_tokenizer_is_not_whole(folder, tmp_path, name, share):
    copy_tokenizer(folder, tmp_path / "copy")
    assert is_readable(tmp_path / "copy")
    path = tmp_path / "copy" / name
    content = path.read_bytes()
    path.unlink()
    if share is not None:
        path.write_bytes(content[: int(share * len(content))])
    assert not is_readable(tmp_path / "copy")


BROKEN = [
    (
        "generation_config.json",
        '{"eos_token_id": [99999]}',
        "eos_token_id 99999 is not one",
    ),
    ("generation_config.json", '{"eos_token_id": -1}', "eos_token_id -1 is not one"),
    ("generation_config.json", '{"eos_token_id": 1.5}', "eos_token_id 1.5 is not one"),
    ("generation_config.json", '{"eos_token_id": "</s>"}', "eos_token_id '</s>' is"),
    (
        "generation_config.json",
        '{"eos_token_id": true}',
        "eos_token_id True is not one",
    ),
    ("generation_config.json", "[" * 100_000, "generation_config.json is damaged"),
    ("tokenizer_config.json", "[" * 100_000, "tokenizer_config.json is damaged"),
    ("tokenizer_config.json", "[]", "tokenizer_config.json is damaged"),
    ("tokenizer.json", "[" * 100_000, "cannot be read"),
    ("tokenizer.json", "", "cannot be read"),
    ("ice_text.model", "rubbish", "not a sentencepiece model|no pieces"),
]


@pytest.mark.parametrize(("name", "content", "message"), BROKEN)
def test_a_broken_file_of_a_tokenizer_is_named(
    folder, tmp_path, name, content, message
):
    copy_tokenizer(folder, tmp_path / "copy")
    (tmp_path / "copy" / name).write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        load_tokenizer(tmp_path / "copy")
    assert str(tmp_path / "copy") in str(error.value)


def test_a_token_with_an_absurd_number_is_refused(folder, tmp_path):
    copy_tokenizer(folder, tmp_path / "copy")
    path = tmp_path / "copy" / "tokenizer.json"
    content = json.loads(path.read_text())
    first = next(iter(content["model"]["vocab"]))
    content["model"]["vocab"][first] = 4_000_000_000
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"one of them is number 4000000000"):
        load_tokenizer(tmp_path / "copy")
