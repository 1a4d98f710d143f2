"""The tokenizer in the metadata of a GGUF file, as a folder.

The file holds the tokens and merges of a byte-level BPE, and the name of the way that
text is split before it (the pre-tokenizer), which llama.cpp, src/llama-vocab.cpp, has
as code. The splits here are those of the published tokenizer.json.
"""

from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import normalizers
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence, Split
from transformers import AddedToken, PreTrainedTokenizerFast

from rlhf_jax.files import write_json


def _by_words(digits: str) -> PreTokenizer:
    """Split as Llama 3, Qwen and GLM-4 do, with numbers of so many digits (a regex)."""
    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    return Sequence(
        [
            Split(tokenizers.Regex(words), "isolated"),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


_SPLITS = {
    "gpt-2": ByteLevel(add_prefix_space=False),
    "smollm": Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    ),
    "llama-bpe": _by_words("{1,3}"),
    "chatglm-bpe": _by_words("{1,3}"),
    "glm4": _by_words("{1,3}"),
    "qwen2": _by_words(""),
}
# The names of tokenizers that take a piece which is itself a token without merging.
_WHOLE_PIECES = ("llama-bpe", "chatglm-bpe", "glm4")
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5  # of tokenizer.ggml.token_type
# Keys that need nothing done: further roles, what a BPE has not, and the token before
# a text, which the chat template writes itself.
_NOT_NEEDED = (
    "add_bos_token",
    *(f"fim_{name}_token_id" for name in ("pre", "suf", "mid", "pad", "rep", "sep")),
    *(f"{name}_token_id" for name in ("prefix", "suffix", "middle", "mask", "cls")),
    *("seperator_token_id", "scores", "token_type_count"),
)


def take_tokenizer(keys: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """Write the tokenizer, its chat template and its stop ids into the folder `path`,
    and remove from `keys` what was understood.

    Returns:
        The fields of config.json: bos_token_id, eos_token_id and pad_token_id.

    Raises:
        ValueError: names the key that is missing or has an unsupported value.
    """

    def take(name: str, *default: Any) -> Any:
        key = f"tokenizer.ggml.{name}"
        if key not in keys and not default:
            raise ValueError(f"The file has no key {key}.")
        return keys.pop(key, *default)

    kind = take("model")
    if kind != "gpt2":
        raise ValueError(
            f"tokenizer.ggml.model={kind!r} is not supported: only 'gpt2', the "
            "byte-level BPE, is."
        )
    pre = take("pre")
    if pre not in _SPLITS:
        raise ValueError(
            f"tokenizer.ggml.pre={pre!r} is not one of {', '.join(_SPLITS)}."
        )
    for name in ("add_space_prefix", "remove_extra_whitespaces", "add_eos_token"):
        if take(name, False):
            raise ValueError(f"tokenizer.ggml.{name}=True is not supported.")
    for name in _NOT_NEEDED:
        take(name, None)
    tokens, merges = take("tokens"), take("merges")
    kinds = take("token_type", [_NORMAL] * len(tokens))
    if len(kinds) != len(tokens):
        raise ValueError(
            f"tokenizer.ggml.token_type has {len(kinds)} entries for {len(tokens)} "
            "tokens."
        )
    ids = {
        name: take(f"{name}_token_id", None)
        for name in ("bos", "eos", "eot", "eom", "unknown", "padding")
    }
    for name, i in ids.items():
        if i is not None and not 0 <= i < len(tokens):
            raise ValueError(
                f"tokenizer.ggml.{name}_token_id={i} is none of {len(tokens)} tokens."
            )
    vocabulary = {
        token: i
        for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind != _UNUSED
    }
    try:
        model = tokenizers.models.BPE(
            vocab=vocabulary,
            merges=[tuple(merge.split(" ", 1)) for merge in merges],
            ignore_merges=pre in _WHOLE_PIECES,
        )
    except Exception as error:  # the library's errors have no type of their own
        raise ValueError(f"tokenizer.ggml.merges: {error}") from None
    bpe = tokenizers.Tokenizer(model)
    bpe.pre_tokenizer = _SPLITS[pre]
    if pre == "qwen2":
        bpe.normalizer = normalizers.NFC()
    bpe.decoder = tokenizers.decoders.ByteLevel()
    for token, kind in zip(tokens, kinds, strict=True):
        if kind in (_CONTROL, _USER_DEFINED):
            is_special = kind == _CONTROL
            added = AddedToken(token, special=is_special, normalized=False)
            (bpe.add_special_tokens if is_special else bpe.add_tokens)([added])
    roles = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    inner = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        clean_up_tokenization_spaces=False,
        **{
            f"{role}_token": tokens[ids[name]]
            for role, name in roles.items()
            if ids[name] is not None
        },
    )
    inner.chat_template = _take_template(keys)
    inner.save_pretrained(path)
    stops = [ids[name] for name in ("eos", "eot", "eom") if ids[name] is not None]
    fields = {
        "bos_token_id": ids["bos"],
        "eos_token_id": list(dict.fromkeys(stops)),
        "pad_token_id": ids["padding"],
    }
    fields = {name: x for name, x in fields.items() if x not in (None, [])}
    write_json(Path(path) / "generation_config.json", fields)
    return fields


def _take_template(keys: dict[str, Any]) -> str | None:
    """Return the chat template; those of other names, for tools, are left out."""
    key = "tokenizer.chat_template"
    keys.pop("tokenizer.chat_templates", None)
    for name in [name for name in keys if name.startswith(f"{key}.")]:
        del keys[name]
    template = keys.pop(key, None)
    if template is not None and "{{" not in template and "{%" not in template:
        raise ValueError(f"{key}={template!r} is not a template.")
    return template
