"""Tokenizers: nothing is lost, and text never becomes a special token."""

import hashlib
import json
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from rlhf_jax.data.tokenizers import SPECIAL_TOKENS, load_tokenizer, train_tokenizer

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
