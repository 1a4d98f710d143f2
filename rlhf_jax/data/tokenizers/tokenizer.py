"""Tokenizers: load one from a folder or train a small one, without network access.

The files of a folder determine its kind:

    ice_text.model        ChatGLM-6B, sentencepiece
    tokenizer.json        read by transformers: GLM-4 (-hf and 0414), trained ones
    tokenizer.model       ChatGLM2 and ChatGLM3, sentencepiece; GLM-4, tiktoken
    anything else         read by transformers, without running code from the folder
"""

import functools
import hashlib
import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import tokenizers
from transformers import (
    AddedToken,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from rlhf_jax.data.tokenizers import folder, templates, tiktoken_file
from rlhf_jax.data.tokenizers.folder import has_tokenizer
from rlhf_jax.data.tokenizers.sentencepieces import (
    ChatGLM2Tokenizer,
    ChatGLMTokenizer,
    look_up,
)
from rlhf_jax.files import write_json

_STAND_INS = 0xF0000  # first code point of a private use area, which texts do not use
PAD = "<|endoftext|>"
# GLM-4's special tokens, in the order of their ids.
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
# GLM-4 has no token for the end of an answer: the next speaker's token ends an answer.
STOP_TOKENS = (PAD, "<|user|>", "<|observation|>")


class Tokenizer(Protocol):
    """A map from text to ids and back; special tokens come only from `special_id`.

    Text is data: "<|assistant|>" in a user's text gives the letters, not the token.

    Attributes:
        vocab_size: one more than the largest id.
        pad_id: the id at padded slots.
        end_id: the id that closes an answer.
        stop_ids: all ids that end an answer, `end_id` included.
        chat_format: the format of dialogues, a key of `chat_formats.FORMATS`; "none"
            for a tokenizer without a chat format.
        fingerprint: a hash of all that determines `encode`, `decode` and the chat
            format; equal hashes mean equal behaviour.
    """

    vocab_size: int
    pad_id: int
    end_id: int
    stop_ids: tuple[int, ...]
    chat_format: str
    fingerprint: str

    def encode(self, text: str) -> list[int]: ...

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Encode many texts, on all cores where the library can."""

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text without special tokens."""

    def special_id(self, name: str) -> int:
        """Return the id of a special token; a ValueError lists the existing ones."""


# Where a chat template asks whether a message is the answer of a tool.
_TOOL_ROLE = re.compile(r"""role\b['"\])]*\s*==\s*['"]tool['"]""")


class TransformersTokenizer:
    """A `Tokenizer` of transformers: GLM-4's, or any other with its chat template."""

    def __init__(self, inner: PreTrainedTokenizerBase, more_stop_ids: Iterable[int]):
        self._inner = inner
        vocabulary = inner.get_vocab()
        self.vocab_size = max(vocabulary.values()) + 1
        if self.vocab_size > 2 * len(vocabulary) + 1024:
            raise ValueError(
                f"it has {len(vocabulary)} tokens, and one of them is number "
                f"{self.vocab_size - 1}."
            )
        self._special = _special_ids(inner)
        is_glm4 = set(SPECIAL_TOKENS) <= set(self._special)
        stops = [self._special[name] for name in STOP_TOKENS] if is_glm4 else []
        stops += [inner.eos_token_id, *more_stop_ids]
        self.stop_ids = tuple(dict.fromkeys(i for i in stops if i is not None))
        if not self.stop_ids:
            raise ValueError("it has no end-of-text token (eos_token).")
        for i in self.stop_ids:
            if type(i) is not int or not 0 <= i < self.vocab_size:
                raise ValueError(f"eos_token_id {i!r} is not one of its tokens.")
        self.end_id = self._special["<|user|>"] if is_glm4 else self.stop_ids[0]
        pad = inner.pad_token_id
        self.pad_id = self.stop_ids[0] if pad is None else pad
        # Text gives letters even where it spells a stop or padding token, so these
        # tokens must be special ones.
        control = {self.pad_id, *self.stop_ids} - set(self._special.values())
        tokens = [inner.convert_ids_to_tokens(i) for i in sorted(control)]
        if tokens:
            inner.add_tokens(
                [AddedToken(x, special=True, normalized=False) for x in tokens],
                special_tokens=True,
            )
            self._special = _special_ids(inner)
        self._control = _pattern(inner)
        own_format = "glm4" if is_glm4 else "none"
        self._template = inner.get_chat_template() if inner.chat_template else ""
        self.chat_format = "template" if self._template else own_format
        self.fingerprint = _fingerprint(self, inner)

        # Chat formats encode the same message heads again and again.
        self._ids = functools.lru_cache(maxsize=4096)(self._encode)

    def encode(self, text: str) -> list[int]:
        return list(self._ids(text))

    def _encode(self, text: str) -> list[int]:
        return self._inner.encode(
            text, add_special_tokens=False, split_special_tokens=True
        )

    def encode_after(self, text: str) -> list[int]:
        """Return the ids of a text that goes on a line: without the space that
        sentencepiece models put before the first word."""
        line, ids = self.encode("\n"), self._encode(f"\n{text}")
        first = self._inner.convert_ids_to_tokens(line[:1])
        if not "".join(first).startswith("\N{LOWER ONE EIGHTH BLOCK}"):
            return self.encode(text)
        return ids[len(line) :] if ids[: len(line)] == line else self.encode(text)

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

    def encode_chat(self, messages: list[dict[str, Any]]) -> list[int]:
        """Return the ids of messages by the chat template, up to where an answer
        begins. Special tokens come from the template alone: a message that spells a
        special token gives its letters."""
        spelled: dict[str, str] = {}

        def hide(x):
            """Replace spelled special tokens by stand-ins, which no text holds."""
            if isinstance(x, dict):
                return {hide(key): hide(value) for key, value in x.items()}
            if isinstance(x, list):
                return [hide(value) for value in x]
            if not isinstance(x, str):
                return x
            if any(ord(c) >= _STAND_INS for c in x):
                spelled.update({c: c for c in x if ord(c) >= _STAND_INS})
            for name in sorted(self._special, key=len, reverse=True):
                if name in x:
                    stand_in = chr(_STAND_INS + self._special[name])
                    spelled[stand_in] = name
                    x = x.replace(name, stand_in)
            return x

        hidden = [
            {key: x if key == "role" else hide(x) for key, x in message.items()}
            for message in messages
        ]
        text = self.render(hidden, to_answer=True)
        if not spelled:
            return self.encode_rendered(text)
        ids = []
        for i, part in enumerate(self._control.split(text)):
            if i % 2:
                ids.append(self._special[part.strip()])
            else:
                ids += self._encode("".join(spelled.get(c, c) for c in part))
        return ids

    def encode_rendered(self, text: str) -> list[int]:
        """Return the ids of a text in which spelled special tokens are tokens."""
        return self._inner.encode(text, add_special_tokens=False)

    def decode(self, ids: Iterable[int]) -> str:
        return self._inner.decode(
            [int(i) for i in ids],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )

    def special_id(self, name: str) -> int:
        return look_up(self._special, name)

    def render(self, messages: list[dict[str, Any]], *, to_answer: bool) -> str:
        """Render the chat template, up to where an answer begins if `to_answer`.

        As in transformers, a template has the tools of the messages as its variable
        `tools`. What we call an observation has the role "tool" where a template names
        that one.
        """
        variables = {
            **self._inner.special_tokens_map,
            "add_generation_prompt": to_answer,
        }
        tools = [tool for message in messages for tool in message.get("tools") or ()]
        if tools:
            variables["tools"] = tools
        if _TOOL_ROLE.search(self._template):
            messages = [
                message | {"role": "tool"}
                if message["role"] == "observation"
                else message
                for message in messages
            ]
        try:
            return templates.render(self._template, messages, variables)
        except ValueError as error:
            roles = [message["role"] for message in messages]
            raise ValueError(
                f"The chat template cannot write {roles}: {error}"
            ) from None


def train_tokenizer(texts: Iterable[str], vocab_size: int, path: str | Path) -> None:
    """Train byte-level BPE of `vocab_size` tokens, specials included, into a folder.

    GLM-4's special tokens are at the end of the vocabulary, so a tiny model has the
    chat format of the published ones. The vocabulary is smaller than `vocab_size` if
    the texts have no more pairs to merge.
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
    with folder.writing_whole(path) as making:
        _with_special_tokens(bpe).save_pretrained(making)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read a tokenizer folder; local files only, and never code from it.

    Raises:
        ValueError: the folder has no tokenizer, or one that is damaged or requires
            code from its folder.
    """
    path = Path(path)
    if not has_tokenizer(path):
        raise ValueError(
            f"No tokenizer at {path}: it has no {', no '.join(folder.MARKS)}. Train "
            "one with train_tokenizer, or give the folder of a published model."
        )
    try:
        return _load(path)
    except BaseException as error:  # broken files raise many types of error
        panic = type(error).__name__ == "PanicException"  # raised by Rust code
        if not panic and not isinstance(error, Exception):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"The tokenizer at {path} cannot be read: {reason[:1000]} Get its files "
            "again, or name another folder."
        ) from None


def is_readable(path: str | Path) -> bool:
    """Return True if a folder holds a tokenizer that can be read."""
    try:
        load_tokenizer(path)
    except ValueError:
        return False
    return True


def copy_tokenizer(source: str | Path, target: str | Path) -> None:
    """Copy a tokenizer's files, and no other files, into a folder."""
    source = Path(source)
    chat_format = load_tokenizer(source).chat_format
    with folder.writing_whole(target) as making:
        for name in folder.FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, making / name)
        # The Python code that may identify the generation is not copied.
        if chat_format in ("chatglm2", "chatglm3"):
            name = "tokenizer_config.json"
            settings = folder.read_settings(making, name) | {"chat_format": chat_format}
            write_json(making / name, settings)


def _load(path: Path) -> Tokenizer:
    if (path / "ice_text.model").is_file():
        return ChatGLMTokenizer(path)
    settings = folder.read_settings(path, "tokenizer_config.json")
    model = path / "tokenizer.model"
    if not (path / "tokenizer.json").is_file() and model.is_file():
        if tiktoken_file.is_one(model):
            inner = _with_special_tokens(tiktoken_file.read(model))
            return TransformersTokenizer(inner, ())
        if settings.get("tokenizer_class") == "ChatGLMTokenizer":
            return ChatGLM2Tokenizer(path)
    # Chat models stop at further tokens besides the tokenizer's end of text.
    stops = folder.read_settings(path, "generation_config.json").get("eos_token_id")
    stops = stops if isinstance(stops, list) else [stops]
    inner = AutoTokenizer.from_pretrained(
        path, local_files_only=True, trust_remote_code=False
    )
    return TransformersTokenizer(inner, stops)


def _special_ids(inner: PreTrainedTokenizerBase) -> dict[str, int]:
    added = inner.added_tokens_decoder.items()
    return {token.content: index for index, token in added if token.special}


def _pattern(inner: PreTrainedTokenizerBase) -> re.Pattern:
    """Return the pattern of special tokens in a rendered text, the longest first, with
    the white space that some of them absorb."""
    tokens = [x for x in inner.added_tokens_decoder.values() if x.special and x.content]
    spelled = (
        r"\s*" * x.lstrip + re.escape(x.content) + r"\s*" * x.rstrip
        for x in sorted(tokens, key=lambda x: len(x.content), reverse=True)
    )
    return re.compile(f"({'|'.join(spelled) or '(?!)'})")


def _fingerprint(tokenizer, inner: PreTrainedTokenizerBase) -> str:
    """Return the SHA-256 of the rules that split, merge, number and decode text, of the
    chat template, and of the special ids."""
    backend = getattr(inner, "backend_tokenizer", None)
    if backend is None:
        cut = {"class": type(inner).__name__, "vocabulary": inner.get_vocab()}
    else:
        cut = json.loads(backend.to_str())
        for unused in ("version", "truncation", "padding", "post_processor"):
            cut.pop(unused, None)
    ids = (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.end_id, tokenizer.stop_ids)
    record = [_without_off(cut), sorted(tokenizer._special.items()), ids]
    record += [tokenizer.chat_format, tokenizer._template, inner.special_tokens_map]
    text = json.dumps(record, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _without_off(x):
    """Drop options that are None or False, which later library versions add."""
    if isinstance(x, dict):
        options = {key: _without_off(value) for key, value in x.items()}
        return {k: v for k, v in options.items() if v is not None and v is not False}
    return [_without_off(value) for value in x] if isinstance(x, list) else x


def _with_special_tokens(bpe: tokenizers.Tokenizer) -> PreTrainedTokenizerFast:
    bpe.add_special_tokens(list(SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=PAD,
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
    )
