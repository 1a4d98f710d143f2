"""ChatGLM-6B, ChatGLM2, ChatGLM3: published ids, offsets, text that comes back."""

import json
import random
import re

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from rlhf_jax.data.tokenizers.tokenizer import copy_tokenizer, load_tokenizer
from tests.data.tokenizers.tokenizer_models import write_v1, write_v2

CODE = "def main():\n    print('hello world')\t# greeting"


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    return {
        "chatglm": load_tokenizer(write_v1(root / "v1")),
        "chatglm2": load_tokenizer(write_v2(root / "v2")),
        "chatglm3": load_tokenizer(write_v2(root / "v3", "THUDM/chatglm3-6b-base")),
    }


@pytest.mark.parametrize(
    ("version", "text", "ids"),
    [
        ("chatglm", "你好", "5 74874"),
        (
            "chatglm",
            CODE,
            "1616 594 125936 4 130011 2274 89 7283 398 125686 130008 61 25672",
        ),
        (
            "chatglm2",
            CODE,
            "884 1301 9427 13 296 4466 2029 15616 30914 993 3387 12 31010 30174",
        ),
        ("chatglm3", "你好", "36474 54591"),
        ("chatglm3", "\n", "30910 13"),
        ("chatglm3", "", ""),
    ],
)
def test_text_has_its_published_ids(tokenizers, version, text, ids):
    assert tokenizers[version].encode(text) == [int(i) for i in ids.split()]


@pytest.mark.parametrize(
    ("version", "special", "pad", "stops", "size"),
    [
        (
            "chatglm",
            {"[MASK]": 130000, "[gMASK]": 130001, "[sMASK]": 130002}
            | {"<sop>": 130004, "<eop>": 130005},
            3,
            (130005,),
            130344,
        ),
        (
            "chatglm2",
            {"[MASK]": 64789, "[gMASK]": 64790, "[sMASK]": 64791}
            | {"sop": 64792, "eop": 64793},
            0,
            (2,),
            64794,
        ),
        (
            "chatglm3",
            {"[gMASK]": 64790, "sop": 64792, "eop": 64793, "<|system|>": 64794}
            | {"<|user|>": 64795, "<|assistant|>": 64796, "<|observation|>": 64797},
            0,
            (2, 64795, 64797),
            64798,
        ),
    ],
)
def test_special_tokens_have_their_published_ids(
    tokenizers, version, special, pad, stops, size
):
    tokenizer = tokenizers[version]
    assert {name: tokenizer.special_id(name) for name in special} == special
    assert (tokenizer.pad_id, tokenizer.stop_ids) == (pad, stops)
    assert tokenizer.vocab_size == size
    assert tokenizer.chat_format == version
    with pytest.raises(ValueError, match=r"no special token 'robot'.*MASK"):
        tokenizer.special_id("robot")


@pytest.mark.parametrize("version", ["chatglm", "chatglm2", "chatglm3"])
@settings(max_examples=100, deadline=None)
@given(text=st.text(alphabet=st.sampled_from(list("你好aé#🙂 \n\t<>n|_2[]"))))
def test_text_comes_back_whole(tokenizers, version, text):
    tokenizer = tokenizers[version]
    for spelled in ("<n>", "<|"):  # ChatGLM-6B's own spelling of white space
        text = text.replace(spelled, "")
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_runs_of_spaces_are_spelled_longest_first(tokenizers):
    tokenizer = tokenizers["chatglm"]
    blank = {n: 130009 + n - 2 for n in range(2, 81)}
    for count, runs in [(2, [2]), (80, [80]), (83, [80, 3]), (162, [80, 80, 2])]:
        ids = tokenizer.encode("#" + " " * count + "#")
        assert ids == [5, 61, *(blank[n] for n in runs), 61]
        assert tokenizer.decode(ids) == "#" + " " * count + "#"


@pytest.mark.parametrize(
    "name", ["[gMASK]", "<sop>", "<eop>", "sop", "<|user|>", "</s>", "<pad>", "<s>"]
)
def test_a_special_token_in_text_is_only_text(tokenizers, name):
    for tokenizer in tokenizers.values():
        plain = set(tokenizer.encode("sop say <|user[gMASK/p>"))
        ids = tokenizer.encode(f"say {name}")
        special = {tokenizer.pad_id, *tokenizer.stop_ids, *tokenizer._special.values()}
        assert not set(ids) & special, name
        assert tokenizer.decode(ids) == f"say {name}"
        assert not plain & special


def test_special_tokens_are_left_out_of_text(tokenizers):
    v1, v3 = tokenizers["chatglm"], tokenizers["chatglm3"]
    assert v1.decode([3, 3, 5, 74874, 130001, 130004, 130005]) == "你好"
    assert v3.decode([0, 64790, 64792, 36474, 54591, 64795, 2]) == "你好"


def test_image_tokens_come_first_where_a_folder_has_them(tmp_path):
    tokenizer = load_tokenizer(write_v1(tmp_path, num_image_tokens=20000))
    assert tokenizer.encode("你好") == [20005, 94874]
    assert tokenizer.special_id("<sop>") == 150004
    assert tokenizer.decode([7, 20005, 94874]) == "你好"


def test_what_says_chatglm2_or_chatglm3(tmp_path):
    def format_of(name, **fields):
        return load_tokenizer(write_v2(tmp_path / "t", name, **fields)).chat_format

    with pytest.raises(ValueError, match=r'Write "chat_format": "chatglm2"'):
        format_of("/data/model")
    assert format_of("/data/model", chat_format="chatglm3") == "chatglm3"
    assert format_of("THUDM/chatglm3-6b", chat_format="chatglm2") == "chatglm2"
    with pytest.raises(ValueError, match="'chatglm9' is not one of"):
        format_of("/data/model", chat_format="chatglm9")
    template = "{{ '<|assistant|>' }}"
    assert format_of("/data/model", chat_template=template) == "chatglm3"
    code = tmp_path / "t" / "tokenization_chatglm.py"
    code.write_text("special_tokens = ['[MASK]', 'sop', 'eop']; raise SystemExit")
    assert format_of("/data/model") == "chatglm2"
    code.write_text("special_tokens = ['sop', '<|assistant|>']; raise SystemExit")
    assert format_of("/data/model") == "chatglm3"
    copy_tokenizer(tmp_path / "t", tmp_path / "copy")
    assert load_tokenizer(tmp_path / "copy").chat_format == "chatglm3"
    assert not (tmp_path / "copy" / code.name).exists()


def test_fingerprints_tell_vocabularies_apart(tokenizers):
    assert len({t.fingerprint for t in tokenizers.values()}) == 3


def test_models_that_are_something_else_are_refused(tmp_path):
    write_v1(tmp_path)
    (tmp_path / "ice_text.model").write_bytes(b"not a model")
    with pytest.raises(ValueError, match=r"ice_text\.model is not a sentencepiece"):
        load_tokenizer(tmp_path)
    write_v2(tmp_path)
    (tmp_path / "tokenizer.model").rename(tmp_path / "ice_text.model")
    with pytest.raises(ValueError, match=r"it is not ChatGLM-6B's"):
        load_tokenizer(tmp_path)


def test_a_model_trained_here_gives_the_ids_of_the_library(tmp_path):
    """No layout of ours: whatever sentencepiece trains is read as it reads it."""
    words = ["the", "cat", "sat", "on a mat", "and saw", "nine", "dogs", "你好", "世界"]
    random.seed(0)
    lines = [" ".join(random.choices(words, k=8)) for _ in range(300)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=330,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        minloglevel=2,
        hard_vocab_limit=False,
    )
    fields = {"tokenizer_class": "ChatGLMTokenizer", "chat_format": "chatglm2"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(fields))
    ours = load_tokenizer(tmp_path)
    theirs = sentencepiece.SentencePieceProcessor(
        model_file=str(tmp_path / "tokenizer.model")
    )
    for text in [*lines[:20], "something else: 🙂"]:
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == text
    assert ours.special_id("[MASK]") == theirs.vocab_size()


@pytest.mark.parametrize("first", [-1, 10**9, "7", 1.5, None, True])
def test_image_tokens_that_cannot_be_are_refused(first, tmp_path):
    with pytest.raises(ValueError, match="num_image_tokens"):
        load_tokenizer(write_v1(tmp_path, num_image_tokens=first))


@pytest.mark.parametrize("settings", ["[" * 100_000, "[]", "{", "\x00"])
@pytest.mark.parametrize("write", [write_v1, write_v2])
def test_broken_settings_are_named(write, settings, tmp_path):
    write(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(settings)
    with pytest.raises(ValueError, match=r"tokenizer_config\.json is damaged"):
        load_tokenizer(tmp_path)


def test_pieces_without_an_end_are_refused(tmp_path):
    folder = write_v2(tmp_path)
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString((folder / "tokenizer.model").read_bytes())
    for keep in (0, 1, 2):
        del proto.pieces[keep:]
        (folder / "tokenizer.model").write_bytes(proto.SerializeToString())
        with pytest.raises(ValueError, match=re.escape(str(folder))):
            load_tokenizer(folder)
