"""Tokenizers: train a small one, load one from a folder, nothing from the network.

A tokenizer folder is what `transformers` reads: `tokenizer.json` beside
`tokenizer_config.json`. Trained ones are byte-level BPE with GLM-4's special
tokens at the end of the vocabulary, so a tiny model speaks the same chat format
as the published ones.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

PAD = "<|endoftext|>"
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


class Tokenizer:
    """Text to ids and back; special tokens only ever come from `special_id`.

    Text is data: a user who writes "<|assistant|>" gets the letters, not the token.
    """

    def __init__(self, fast: PreTrainedTokenizerFast):
        self._fast = fast
        vocabulary = fast.get_vocab()
        self._special = {
            token.content: index
            for index, token in fast.added_tokens_decoder.items()
            if token.special
        }
        self.vocab_size = max(vocabulary.values()) + 1
        self.pad_id = fast.pad_token_id
        self.stop_ids = tuple(self.special_id(name) for name in STOP_TOKENS)
        self.fingerprint = hashlib.sha256(
            json.dumps(sorted(vocabulary.items())).encode()
        ).hexdigest()

    def encode(self, text: str) -> list[int]:
        return self._fast.encode(
            text, add_special_tokens=False, split_special_tokens=True
        )

    def decode(self, ids: Iterable[int]) -> str:
        return self._fast.decode(
            [int(i) for i in ids],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )

    def special_id(self, name: str) -> int:
        if name not in self._special:
            raise ValueError(
                f"The tokenizer has no special token {name!r}; it has "
                f"{sorted(self._special)}."
            )
        return self._special[name]


def train_tokenizer(texts: Iterable[str], vocab_size: int, path: str | Path) -> None:
    """Train byte-level BPE of `vocab_size` tokens, specials included, into a folder.

    Ends with fewer tokens when the texts have no more pairs to merge.
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
    bpe.add_special_tokens(list(SPECIAL_TOKENS))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=PAD,
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
    )
    fast.save_pretrained(path)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read a tokenizer folder; local files only, and never code from it."""
    path = Path(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if not (path / name).is_file():
            raise ValueError(
                f"No tokenizer at {path}: {name} is missing. Train one with "
                "train_tokenizer, or give the folder of a published model."
            )
    return Tokenizer(
        AutoTokenizer.from_pretrained(
            path, local_files_only=True, trust_remote_code=False
        )
    )
