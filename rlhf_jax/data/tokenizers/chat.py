"""Encoding of dialogues into tokens, in the chat format of the tokenizer.

A message is {"role": "system" | "user" | "assistant" | "observation", "content": text};
`chat_formats` lists the further keys of a message and describes each format. A message
with content that its format would drop is refused.
"""

import bisect
import itertools
from collections.abc import Iterable, Iterator, Sequence

from rlhf_jax.data.tokenizers.chat_formats import (
    FORMATS,
    Message,
    answer_lead,
)
from rlhf_jax.data.tokenizers.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant", "observation")


def encode_prompt(messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """Return the token ids up to where the assistant's answer begins."""
    if not messages:
        raise ValueError("A prompt needs at least one message.")
    if messages[-1].get("role") == "assistant":
        raise ValueError(
            "A prompt ends before the assistant speaks; its last message is the "
            "assistant's. Use encode_dialogue for finished dialogues."
        )
    return _encode(messages, tokenizer)[0]


def encode_response(text: str, tokenizer: Tokenizer) -> list[int]:
    """Return the tokens that a policy has to write: the answer and its end token."""
    question = {"role": "user", "content": ""}
    answer = {"role": "assistant", "content": text}
    ids, mask = _encode([question, answer], tokenizer)
    return [i for i, is_learned in zip(ids, mask, strict=True) if is_learned]


def decode_response(ids: Iterable[int], tokenizer: Tokenizer) -> str:
    """Return the answer's text, the inverse of `encode_response`."""
    return tokenizer.decode(ids).removeprefix(answer_lead(tokenizer))


def stream_response(ids: Iterable[int], tokenizer: Tokenizer) -> Iterator[str]:
    """Yield the answer's text as its tokens arrive; the pieces joined together are the
    result of `decode_response`. An incomplete UTF-8 character is held back until its
    last byte arrives."""
    seen, shown = [], ""
    for token in ids:
        seen.append(token)
        if answer_lead(tokenizer).startswith(tokenizer.decode(seen)):
            continue
        text = decode_response(seen, tokenizer)
        if text.startswith(shown) and not text.endswith("\N{REPLACEMENT CHARACTER}"):
            yield text[len(shown) :]
            shown = text
    yield decode_response(seen, tokenizer)[len(shown) :]


def encode_dialogue(
    messages: Sequence[Message], tokenizer: Tokenizer, *, thoughts: bool = True
) -> tuple[list[int], list[bool]]:
    """Return the ids and the loss mask, True on the assistant's tokens and their end;
    without `thoughts`, on those after the thought that an answer begins with.

    For a dialogue with one answer, at the end, the result is `encode_prompt` of the
    messages before the answer followed by `encode_response`, so training sees the
    tokens from which generation starts.
    """
    if not any(message.get("role") == "assistant" for message in messages):
        raise ValueError("A dialogue to train on needs an answer of the assistant.")
    ids, mask = _encode(messages, tokenizer)
    return ids, mask if thoughts else _after_thoughts(ids, mask, tokenizer)


def _after_thoughts(
    ids: list[int], mask: list[bool], tokenizer: Tokenizer
) -> list[bool]:
    """Return the mask with False on each answer's thought, up to its "</think>"; the
    answer itself or its prompt may open the thought."""
    mask, start = list(mask), 0
    for is_answer, run in itertools.groupby(list(mask)):
        end = start + len(list(run))
        if is_answer:
            opened = tokenizer.decode(ids[max(0, start - 16) : start]).rstrip()
            text = tokenizer.decode(ids[start:end]).lstrip()
            if text.startswith("<think>") or opened.endswith("<think>"):
                length = bisect.bisect_left(
                    range(end - start),
                    True,
                    key=lambda n: (
                        "</think>" in tokenizer.decode(ids[start : start + n])
                    ),
                )
                mask[start : start + length] = [False] * length
        start = end
    return mask


def _encode(messages, tokenizer):
    for index, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise ValueError(
                f"Message {index} has role {role!r}; must be one of {ROLES}."
            )
        if not isinstance(content, str):
            raise ValueError(f"Message {index} ({role}) has no text: {content!r}.")
    if tokenizer.chat_format not in FORMATS:
        raise ValueError(
            "The tokenizer has no chat template and is not of the ChatGLM family: "
            "put a chat_template.jinja into its folder."
        )
    encode = FORMATS[tokenizer.chat_format]
    try:
        ids, mask = encode(messages, tokenizer)
        for index, message in enumerate(messages):
            for name in {"metadata", "tools"} & set(message):
                bare = {key: x for key, x in message.items() if key != name}
                others = [*messages[:index], bare, *messages[index + 1 :]]
                if message[name] and encode(others, tokenizer)[0] == ids:
                    raise ValueError(
                        f"The chat format {tokenizer.chat_format!r} of this tokenizer "
                        f"does not write the {name} of message {index} "
                        f"({message['role']})."
                    )
    except ValueError as error:
        begin = messages[0]["content"][:60]
        raise ValueError(f"{error} The dialogue begins with {begin!r}.") from None
    return ids, mask
