"""Sentencepiece models with the layout of the published ones.

Pieces that occur in published encodings have their published ids; everything else is
filler. So ids that a test expects are those that the published tokenizers give.
"""

import json
from pathlib import Path

from sentencepiece import sentencepiece_model_pb2

V1_PIECES = {
    "<n>": 4,
    "▁": 5,
    "#": 61,
    "('": 89,
    "▁world": 398,
    "▁main": 594,
    "▁def": 1616,
    "print": 2274,
    "hello": 7283,
    "▁greeting": 25672,
    "你好": 74874,
    "')": 125686,
    "():": 125936,
}
V2_PIECES = {
    "▁▁▁": 296,
    "ound": 517,
    "▁[": 790,
    "▁def": 884,
    "▁world": 993,
    "▁main": 1301,
    "('": 2029,
    "')": 3387,
    "▁print": 4466,
    "():": 9427,
    "hell": 15616,
    "▁greeting": 30174,
    "▁": 30910,
    "o": 30914,
    "1": 30939,
    "R": 30951,
    "]": 30996,
    "#": 31010,
    "：": 31211,
    "▁你": 36474,
    "你好": 39701,
    "好": 54591,
    "问": 54761,
    "答": 55437,
}


def write_v1(folder: Path, **settings) -> Path:
    special = ["[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>"]
    special += ["<ENC>", "<dBLOCK>", "<|tab|>"]
    special += [f"<|blank_{n}|>" for n in range(2, 81)]
    proto = _proto(130000, V1_PIECES)
    proto.pieces[3].piece = "<pad>"
    for name in special:
        proto.pieces.add(piece=name, score=0.0, type=4)  # found in text
    _add_bytes(proto)
    proto.pieces[4].type = 4
    settings = {"tokenizer_class": "ChatGLMTokenizer", "num_image_tokens": 0} | settings
    return _write(folder, "ice_text.model", proto, settings)


def write_v2(folder: Path, name: str = "THUDM/chatglm2-6b", **settings) -> Path:
    proto = _proto(64789, V2_PIECES)
    for byte in range(256):
        proto.pieces[3 + byte].piece = f"<0x{byte:02X}>"
        proto.pieces[3 + byte].type = 6
    settings = {"tokenizer_class": "ChatGLMTokenizer", "name_or_path": name} | settings
    return _write(folder, "tokenizer.model", proto, settings)


def _proto(size: int, pieces: dict[str, int]):
    """A unigram model that spells text in the fewest of `pieces`, or in bytes."""
    proto = sentencepiece_model_pb2.ModelProto()
    proto.trainer_spec.model_type = 1
    proto.trainer_spec.byte_fallback = True
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = True
    proto.normalizer_spec.remove_extra_whitespaces = False
    names = {index: piece for piece, index in pieces.items()}
    for index in range(size):
        score = -1.0 if index in names else -100.0
        score = -0.9 if names.get(index) == "▁你" else score  # rather than "你好"
        proto.pieces.add(piece=names.get(index, f"\ue000{index}"), score=score)
    for index, (name, kind) in enumerate([("<unk>", 2), ("<s>", 3), ("</s>", 3)]):
        proto.pieces[index].piece, proto.pieces[index].type = name, kind
    return proto


def _add_bytes(proto) -> None:
    for byte in range(256):
        proto.pieces.add(piece=f"<0x{byte:02X}>", score=0.0, type=6)


def _write(folder: Path, file: str, proto, settings: dict) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).write_bytes(proto.SerializeToString())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
