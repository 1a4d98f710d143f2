r"""Dialogues to tokens, in GLM-4's chat format.

    [gMASK]<sop><|user|>\n{question}<|assistant|>\n{answer}<|user|>\n{question} ...

The token that ends an answer is the role token of whoever speaks next; an answer
that ends the dialogue is closed with <|user|>, so the model learns one way to stop.
The newline after <|assistant|> belongs to the prompt: a response is the answer's
own tokens and the token that ends it.

A message is {"role": "system" | "user" | "assistant" | "observation",
"content": text}.
"""

from collections.abc import Sequence

from rlhf_jax.data.tokenizers import Tokenizer

Message = dict[str, str]

ROLES = ("system", "user", "assistant", "observation")
END = "<|user|>"


def encode_prompt(messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """Everything up to where the assistant's answer begins."""
    if not messages:
        raise ValueError("A prompt needs at least one message.")
    if messages[-1].get("role") == "assistant":
        raise ValueError(
            "A prompt ends before the assistant speaks; its last message is the "
            "assistant's. Use encode_dialogue for finished dialogues."
        )
    ids, _ = _encode_messages(messages, tokenizer)
    return ids + _assistant_start(tokenizer)


def encode_response(text: str, tokenizer: Tokenizer) -> list[int]:
    """The answer's tokens and the token that ends it: what a policy has to write."""
    return [*tokenizer.encode(text), tokenizer.special_id(END)]


def encode_dialogue(
    messages: Sequence[Message], tokenizer: Tokenizer
) -> tuple[list[int], list[bool]]:
    """Return the ids and the loss mask, True on the assistant's tokens and their end.

    With one answer, last, this is `encode_prompt` of the messages before it followed
    by `encode_response`, so training sees what generation starts from.
    """
    if not any(message.get("role") == "assistant" for message in messages):
        raise ValueError("A dialogue to train on needs an answer of the assistant.")
    ids, loss_mask = _encode_messages(messages, tokenizer)
    if messages[-1]["role"] == "assistant":
        ids.append(tokenizer.special_id(END))
        loss_mask.append(True)
    return ids, loss_mask


def _assistant_start(tokenizer: Tokenizer) -> list[int]:
    return [tokenizer.special_id("<|assistant|>"), *tokenizer.encode("\n")]


def _encode_messages(
    messages: Sequence[Message], tokenizer: Tokenizer
) -> tuple[list[int], list[bool]]:
    ids = [tokenizer.special_id("[gMASK]"), tokenizer.special_id("<sop>")]
    loss_mask = [False, False]
    after_answer = False
    for index, message in enumerate(messages):
        role, content = _checked(message, index)
        if role == "assistant":
            start, text = _assistant_start(tokenizer), tokenizer.encode(content)
        else:
            start = [tokenizer.special_id(f"<|{role}|>")]
            text = tokenizer.encode("\n" + content)
        ids += start + text
        ends_answer = after_answer and start[0] in tokenizer.stop_ids
        after_answer = role == "assistant"
        loss_mask += [ends_answer] + [False] * (len(start) - 1)
        loss_mask += [after_answer] * len(text)
    return ids, loss_mask


def _checked(message: Message, index: int) -> tuple[str, str]:
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise ValueError(f"Message {index} has role {role!r}; known are {ROLES}.")
    if not isinstance(content, str):
        raise ValueError(f"Message {index} ({role}) has no text: {content!r}.")
    return role, content
