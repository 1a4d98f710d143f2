"""GLM-4's tiktoken file, against tiktoken's algorithm written out."""

import base64
import itertools

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_jax.data.tokenizers import tiktoken_file
from rlhf_jax.data.tokenizers.chat import encode_prompt
from rlhf_jax.data.tokenizers.tokenizer import SPECIAL_TOKENS, load_tokenizer

SPLIT = regex.compile(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MERGED = [
    "th",
    "the",
    " the",
    "in",
    "he",
    "ing",
    " th",
    "\n\n",
    "12",
    "23",
    "你",
    "你好",
]
# GLM-4 numbers bytes as GPT-2 does: those that print first.
PRINTED = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTES = PRINTED + [b for b in range(256) if b not in PRINTED]
BYTES = {bytes([b]): rank for rank, b in enumerate(BYTES)}
RANKS = dict(BYTES)
RANKS |= {text.encode(): 256 + i for i, text in enumerate(MERGED)}


def slowly(text: str) -> list[int]:
    """Merge the neighbours of lowest rank until none has one."""
    ids = []
    for piece in SPLIT.findall(text):
        parts = [bytes([b]) for b in piece.encode()]
        if piece.encode() in RANKS:
            parts = [piece.encode()]
        while True:
            pairs = [a + b for a, b in itertools.pairwise(parts)]
            known = [(RANKS[p], i) for i, p in enumerate(pairs) if p in RANKS]
            if not known:
                break
            _, i = min(known)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        ids += [RANKS[part] for part in parts]
    return ids


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("glm4")
    lines = [base64.b64encode(t).decode() + f" {rank}\n" for t, rank in RANKS.items()]
    (folder / "tokenizer.model").write_text("".join(lines))
    assert tiktoken_file.is_one(folder / "tokenizer.model")
    return load_tokenizer(folder)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.sampled_from(list("the ing123\n\r\t'sS你好🙂.,"))))
def test_ids_are_those_of_tiktoken(tokenizer, text):
    assert tokenizer.encode(text) == slowly(text)
    assert tokenizer.decode(slowly(text)) == text


def test_special_tokens_follow_the_last_rank(tokenizer):
    ids = [tokenizer.special_id(name) for name in SPECIAL_TOKENS]
    assert ids == list(range(len(RANKS), len(RANKS) + len(SPECIAL_TOKENS)))
    assert tokenizer.chat_format == "glm4"
    assert not set(tokenizer.encode("say <|user|>")) & set(ids)


def test_a_question_has_glm4s_published_ids(tmp_path):
    """A file of the published size, in which the tokens needed have their places."""
    ranks = [spelled for spelled, _ in sorted(BYTES.items(), key=lambda item: item[1])]
    ranks += [f"{n:05}".encode() for n in range(256, 151329)]
    ranks[109377] = "你好".encode()
    # Its bytes have to meet on the way.
    ranks[300:304] = [b"\xe4\xbd", "你".encode(), b"\xe5\xa5", "好".encode()]
    lines = [base64.b64encode(t).decode() + f" {i}\n" for i, t in enumerate(ranks)]
    (tmp_path / "tokenizer.model").write_text("".join(lines))
    tokenizer = load_tokenizer(tmp_path)
    ids = encode_prompt([{"role": "user", "content": "你好"}], tokenizer)
    # The newline after <|assistant|> is part of the prompt here.
    assert ids == [151331, 151333, 151336, 198, 109377, 151337, 198]
    assert tokenizer.stop_ids == (151329, 151336, 151338)
    assert (tokenizer.pad_id, tokenizer.special_id("[MASK]")) == (151329, 151330)


@pytest.mark.parametrize(
    "line",
    [
        "YQ== 100000000000000000000",
        "YQ== -1",
        "YQ== 0",
        "YQ== 5",
        "YQ== 1.5",
        "YQ==",
        "YQ== 2 3",
        "Y 2",
        "@@@ 2",
        "YQ== \u0662",
    ],
)
def test_ranks_and_tokens_that_cannot_be_are_named(line, tmp_path):
    lines = [base64.b64encode(t).decode() for t in (b"b", b"c")]
    text = "".join(f"{token} {i}\n" for i, token in enumerate(lines))
    (tmp_path / "tokenizer.model").write_text(text + line + "\n")
    with pytest.raises(ValueError, match=r"tokenizer.model(, line 3)?: "):
        load_tokenizer(tmp_path)
