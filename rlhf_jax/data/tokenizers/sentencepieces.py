"""The sentencepiece tokenizers of ChatGLM-6B (v1), ChatGLM2 and ChatGLM3.

The model files are read directly: the Python code in the published folders is not run.
Each `encode` puts a space first, as the published tokenizers do.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from rlhf_jax.data.tokenizers.folder import read_settings

_V1_SPECIAL_TOKENS = (
    "<pad>",
    "[MASK]",
    "[gMASK]",
    "[sMASK]",
    "<unused_0>",
    "<sop>",
    "<eop>",
    "<ENC>",
    "<dBLOCK>",
)
_V2_SPECIAL_TOKENS = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
_V3_SPECIAL_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
_V1_LONGEST_BLANK = 80


class ChatGLMTokenizer:
    """The tokenizer of ChatGLM-6B: `ice_text.model`, whose pieces include specials.

    White space has pieces of its own: newline <n>, tab <|tab|>, and N = 2 to 80 spaces
    <|blank_N|>. Ids start after those of image tokens; the published folder has no
    image tokens.
    """

    chat_format = "chatglm"

    def __init__(self, folder: Path):
        file = folder / "ice_text.model"
        proto = _read_proto(file)
        present = {piece.piece for piece in proto.pieces}
        missing = [name for name in _V1_SPECIAL_TOKENS if name not in present]
        if missing:
            raise ValueError(
                f"{file} has no pieces {missing}: it is not ChatGLM-6B's. Early "
                "releases lack them; get the one with 130528 tokens."
            )
        for piece in proto.pieces:  # control pieces are never matched in text
            if piece.piece in _V1_SPECIAL_TOKENS:
                piece.type = piece.CONTROL
        self._pieces = _processor(proto)
        first = read_settings(folder, "tokenizer_config.json").get(
            "num_image_tokens", 0
        )
        if type(first) is not int or not 0 <= first < 2**20:
            raise ValueError(f"num_image_tokens={first!r} is not a number of tokens.")
        self._first = first
        self._special = {
            name: self._first + self._pieces.piece_to_id(name)
            for name in _V1_SPECIAL_TOKENS
        }
        self.vocab_size = self._first + self._pieces.vocab_size()
        self.pad_id = self._special["<pad>"]
        self.end_id = self._special["<eop>"]
        self.stop_ids = (self.end_id,)
        self.fingerprint = _fingerprint(file, self._special)

    def encode(self, text: str) -> list[int]:
        text = text.replace("\n", "<n>").replace("\t", "<|tab|>")
        text = re.sub(
            f" {{2,{_V1_LONGEST_BLANK}}}", lambda run: f"<|blank_{len(run[0])}|>", text
        )
        return [self._first + i for i in self._pieces.encode(text)]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        pieces = [int(i) - self._first for i in ids]
        text = _decode(self._pieces, [i for i in pieces if i >= 0])
        text = text.replace("<n>", "\n").replace("<|tab|>", "\t")
        return re.sub(r"<\|blank_(\d+)\|>", lambda run: " " * int(run[1]), text)

    def special_id(self, name: str) -> int:
        return look_up(self._special, name)


class ChatGLM2Tokenizer:
    """The tokenizer of ChatGLM2 and ChatGLM3: `tokenizer.model`.

    The special tokens are not pieces of the model; their ids follow the last piece.
    ChatGLM3 has ChatGLM2's special tokens and one for each role.
    """

    def __init__(self, folder: Path):
        file = folder / "tokenizer.model"
        self.chat_format = _generation(folder)
        self._pieces = _processor(_read_proto(file))
        if self._pieces.eos_id() < 0 or self._pieces.unk_id() < 0:
            raise ValueError(f"{file} has no end-of-text token, or no unknown token.")
        size = self._pieces.vocab_size()
        names = _V2_SPECIAL_TOKENS
        if self.chat_format == "chatglm3":
            names += _V3_SPECIAL_TOKENS
        self._special = {name: size + i for i, name in enumerate(names)}
        self._special["</s>"] = end = self._pieces.eos_id()
        self.vocab_size = size + len(names)
        self.pad_id = self._pieces.unk_id()
        self.end_id, self.stop_ids = end, (end,)
        if self.chat_format == "chatglm3":
            self.end_id = self._special["<|user|>"]
            self.stop_ids = (end, self.end_id, self._special["<|observation|>"])
        self.fingerprint = _fingerprint(file, self._special)

    def encode(self, text: str) -> list[int]:
        return self._pieces.encode(text)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        size = self._pieces.vocab_size()
        return _decode(self._pieces, [int(i) for i in ids if i < size])

    def special_id(self, name: str) -> int:
        return look_up(self._special, name)


def look_up(special: dict[str, int], name: str) -> int:
    """Return the id of a special token; a ValueError lists the existing ones."""
    if name not in special:
        raise ValueError(
            f"The tokenizer has no special token {name!r}; it has {sorted(special)}."
        )
    return special[name]


def _generation(folder: Path) -> str:
    """Return "chatglm2" or "chatglm3", by words in the files of the folder."""
    settings = read_settings(folder, "tokenizer_config.json")
    generations = ("chatglm2", "chatglm3")
    if "chat_format" in settings:
        if settings["chat_format"] not in generations:
            raise ValueError(
                f"{folder}/tokenizer_config.json: chat_format="
                f"{settings['chat_format']!r} is not one of {generations}."
            )
        return settings["chat_format"]
    if "<|assistant|>" in json.dumps(settings):
        return "chatglm3"
    code = (
        folder / "tokenization_chatglm.py"
    )  # the code is searched for a word, not run
    if code.is_file():
        has_roles = b"<|assistant|>" in code.read_bytes()
        return "chatglm3" if has_roles else "chatglm2"
    named = [name for name in generations if name in json.dumps(settings).lower()]
    if len(named) == 1:
        return named[0]
    raise ValueError(
        f"{folder} does not say whether its tokenizer.model is ChatGLM2's or "
        'ChatGLM3\'s. Write "chat_format": "chatglm2" (or "chatglm3") into its '
        "tokenizer_config.json."
    )


def _read_proto(file: Path) -> sentencepiece_model_pb2.ModelProto:
    proto, content = sentencepiece_model_pb2.ModelProto(), file.read_bytes()
    try:
        proto.ParseFromString(content)
    except Exception:  # protobuf's DecodeError; the class depends on its version
        raise ValueError(f"{file} is not a sentencepiece model.") from None
    return proto


def _processor(proto) -> sentencepiece.SentencePieceProcessor:
    try:
        return sentencepiece.SentencePieceProcessor(
            model_proto=proto.SerializeToString()
        )
    except Exception as error:  # C++ errors, whose classes vary
        raise ValueError(f"its sentencepiece model cannot be used: {error}") from None


def _decode(pieces: sentencepiece.SentencePieceProcessor, ids: list[int]) -> str:
    return pieces.decode([i for i in ids if not (pieces.is_control(i) or i == 0)])


def _fingerprint(file: Path, special: dict[str, int]) -> str:
    names = json.dumps(sorted(special.items())).encode()
    return hashlib.sha256(file.read_bytes() + names).hexdigest()
