"""GLM-4's `tokenizer.model`: lines of a base64 token and its rank, tiktoken's format.

The file is a byte-level BPE that merges the pair of lowest rank first, so ranks become
merges for the `tokenizers` library.
"""

import base64
import re
from pathlib import Path

import tokenizers
from transformers.convert_slow_tokenizer import bytes_to_unicode

# GLM-4's pattern that splits text into pieces; bytes are merged only inside a piece.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def is_one(path: Path) -> bool:
    """Return True if a `tokenizer.model` is tiktoken's, not sentencepiece's."""
    with path.open("rb") as file:
        return re.fullmatch(rb"[A-Za-z0-9+/]+=* \d+\s*", file.readline(200)) is not None


def read(path: Path) -> tokenizers.Tokenizer:
    """Read the tokenizer without its special tokens.

    Raises:
        ValueError: a line is not a token and a rank, or ranks are not 0, 1, 2, ...
    """
    ranks = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}.") from None
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise ValueError(f"{path}: the ranks of its tokens are not 0, 1, 2, ...")
    letters = bytes_to_unicode()

    def spelled(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    merges = []
    for token in sorted(ranks, key=ranks.get):
        halves = [(token[:i], token[i:]) for i in range(1, len(token))]
        halves = [(a, b) for a, b in halves if a in ranks and b in ranks]
        halves.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges += [(spelled(a), spelled(b)) for a, b in halves]
    bpe = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab={spelled(token): rank for token, rank in ranks.items()},
            merges=merges,
            ignore_merges=True,  # a piece that is itself a token is not merged
        )
    )
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(_SPLIT), "isolated"),
            tokenizers.pre_tokenizers.ByteLevel(
                add_prefix_space=False, use_regex=False
            ),
        ]
    )
    bpe.decoder = tokenizers.decoders.ByteLevel()
    return bpe
