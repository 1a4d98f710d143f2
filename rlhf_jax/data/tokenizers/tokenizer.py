"""Tokenizers: load the one of a folder, train a small one; nothing from the network.

The files of a folder say which it is:

    ice_text.model        ChatGLM-6B, sentencepiece
    tokenizer.json        what transformers reads: GLM-4 (-hf and 0414), trained ones
    tokenizer.model       ChatGLM2 and ChatGLM3, sentencepiece; GLM-4, tiktoken
    anything else         what transformers reads without running code from it
"""

import functools
import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import jinja2
import tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rlhf_jax.data.tokenizers import tiktoken_file
from rlhf_jax.data.tokenizers.sentencepieces import (
    ChatGLM2Tokenizer,
    ChatGLMTokenizer,
    look_up,
)

PAD = "<|endoftext|>"
# Of GLM-4, in the order of their ids.
SPECIAL_TOKENS = (
    PAD,
    "[MASK]",
    "[gMASK]",
    "[sMASK]",
    "<sop>",
    "<eop>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
)
# GLM-4 has no token of its own for the end of an answer: whoever speaks next ends it.
STOP_TOKENS = (PAD, "<|user|>", "<|observation|>")
_MARKS = (
    "tokenizer.json",
    "tokenizer.model",
    "ice_text.model",
    "tokenizer_config.json",
)
FILES = (
    *_MARKS,
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
)


class Tokenizer(Protocol):
    """Text to ids and back; special tokens only ever come from `special_id`.

    Text is data: a user who writes "<|assistant|>" gets the letters, not the token.

    Attributes:
        vocab_size: one more than the largest id.
        pad_id: what stands where nothing is.
        end_id: what closes an answer, and `stop_ids`, all that end one.
        chat_format: how dialogues are written, a key of `chat_formats.FORMATS`; or
            "none", of a tokenizer that knows no dialogues.
        fingerprint: equal for equal vocabularies.
    """

    vocab_size: int
    pad_id: int
    end_id: int
    stop_ids: tuple[int, ...]
    chat_format: str
    fingerprint: str

    def encode(self, text: str) -> list[int]: ...

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """The same of many texts, on all cores where the library can."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text; special tokens are left out."""

    def special_id(self, name: str) -> int:
        """Raises a ValueError that lists the known ones."""


class TransformersTokenizer:
    """A `Tokenizer` of transformers: GLM-4's, or any other with its chat template."""

    def __init__(self, inner: PreTrainedTokenizerBase, more_stop_ids: Iterable[int]):
        self._inner = inner
        vocabulary = inner.get_vocab()
        self._special = {
            token.content: index
            for index, token in inner.added_tokens_decoder.items()
            if token.special
        }
        is_glm4 = set(SPECIAL_TOKENS) <= set(self._special)
        stops = [self._special[name] for name in STOP_TOKENS] if is_glm4 else []
        stops += [inner.eos_token_id, *more_stop_ids]
        self.stop_ids = tuple(dict.fromkeys(i for i in stops if i is not None))
        if not self.stop_ids:
            raise ValueError("it has no token that ends a text (eos_token).")
        self.end_id = self._special["<|user|>"] if is_glm4 else self.stop_ids[0]
        pad = inner.pad_token_id
        self.pad_id = self.stop_ids[0] if pad is None else pad
        self.vocab_size = max(vocabulary.values()) + 1
        own_format = "glm4" if is_glm4 else "none"
        self.chat_format = "template" if inner.chat_template else own_format
        self.fingerprint = hashlib.sha256(
            json.dumps(sorted(vocabulary.items())).encode()
        ).hexdigest()

        # Chat formats ask for the same heads in every message.
        self._ids = functools.lru_cache(maxsize=4096)(self._encode)

    def encode(self, text: str) -> list[int]:
        return list(self._ids(text))

    def _encode(self, text: str) -> list[int]:
        return self._inner.encode(
            text, add_special_tokens=False, split_special_tokens=True
        )

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        return self._inner(
            texts,
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]

    def encode_rendered(self, text: str) -> list[int]:
        """The ids of a rendered chat template, in which special tokens are tokens."""
        return self._inner.encode(text, add_special_tokens=False)

    def decode(self, ids: Iterable[int]) -> str:
        return self._inner.decode(
            [int(i) for i in ids],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )

    def special_id(self, name: str) -> int:
        return look_up(self._special, name)

    def special_in(self, text: str) -> str | None:
        """The first special token that a text spells, if any."""
        return next((name for name in self._special if name in text), None)

    def render(self, messages: list[dict[str, Any]], *, to_answer: bool) -> str:
        """The chat template's text, up to where an answer begins if `to_answer`."""
        try:
            return self._inner.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=to_answer
            )
        except jinja2.TemplateError as error:
            roles = [message["role"] for message in messages]
            raise ValueError(
                f"The chat template cannot write {roles}: {error}"
            ) from None


def train_tokenizer(texts: Iterable[str], vocab_size: int, path: str | Path) -> None:
    """Train byte-level BPE of `vocab_size` tokens, specials included, into a folder.

    GLM-4's special tokens stand at the end of the vocabulary, so a tiny model speaks
    the chat format of the published ones. Ends with fewer tokens when the texts have no
    more pairs to merge.
    """
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    smallest = len(alphabet) + len(SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise ValueError(
            f"{vocab_size=} must be at least {smallest}: {len(alphabet)} bytes and "
            f"{len(SPECIAL_TOKENS)} special tokens."
        )
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size - len(SPECIAL_TOKENS),
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    _with_special_tokens(bpe).save_pretrained(path)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read a tokenizer folder; local files only, and never code from it.

    Raises:
        ValueError: the folder has no tokenizer, or one that needs its own code.
    """
    folder = Path(path)
    if (folder / "ice_text.model").is_file():
        return ChatGLMTokenizer(folder)
    settings = _read_json(folder / "tokenizer_config.json")
    model = folder / "tokenizer.model"
    if not (folder / "tokenizer.json").is_file() and model.is_file():
        if tiktoken_file.is_one(model):
            inner = _with_special_tokens(tiktoken_file.read(model))
            return TransformersTokenizer(inner, ())
        if settings.get("tokenizer_class") == "ChatGLMTokenizer":
            return ChatGLM2Tokenizer(folder)
    return _load_transformers(folder)


def has_tokenizer(path: str | Path) -> bool:
    """Whether a folder holds a tokenizer."""
    return any((Path(path) / name).is_file() for name in _MARKS)


def copy_tokenizer(source: str | Path, target: str | Path) -> None:
    """Copy a tokenizer's files, and nothing else, into a new folder."""
    source, target = Path(source), Path(target)
    chat_format = load_tokenizer(source).chat_format
    target.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if (source / name).is_file():
            shutil.copy(source / name, target / name)
    if chat_format in ("chatglm2", "chatglm3"):  # the code that told them stays behind
        config = target / "tokenizer_config.json"
        settings = _read_json(config) | {"chat_format": chat_format}
        config.write_text(json.dumps(settings, indent=2, ensure_ascii=False))


def _load_transformers(folder: Path) -> TransformersTokenizer:
    if not has_tokenizer(folder):
        raise ValueError(
            f"No tokenizer at {folder}: it has no {', no '.join(_MARKS)}. Train "
            "one with train_tokenizer, or give the folder of a published model."
        )
    # Chat models stop at more tokens than the tokenizer's one end of text.
    stops = _read_json(folder / "generation_config.json").get("eos_token_id")
    stops = [stops] if isinstance(stops, int) else stops or []
    try:
        inner = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        return TransformersTokenizer(inner, stops)
    except BaseException as error:  # whatever a broken file makes of a reader
        panic = type(error).__name__ == "PanicException"  # of its Rust code
        if not panic and not isinstance(error, Exception):
            raise
        raise ValueError(f"The tokenizer at {folder} cannot be read: {error}") from None


def _with_special_tokens(bpe: tokenizers.Tokenizer) -> PreTrainedTokenizerFast:
    bpe.add_special_tokens(list(SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=PAD,
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
    )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a JSON object.")
    return found
