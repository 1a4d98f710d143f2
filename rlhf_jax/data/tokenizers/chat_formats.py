r"""Chat formats: the tokens of a dialogue, as in each generation's published code.

    chatglm   enc(text) [gMASK] <sop> enc(answer) <eop>
    chatglm2  [gMASK] sop enc(text) enc(answer) </s>
    chatglm3  [gMASK] sop <|user|> enc("\n") enc(question) <|assistant|> enc("\n") ...
    glm4      [gMASK] <sop> <|user|> enc("\n") enc(question) <|assistant|> enc("\n") ...
    template  what the tokenizer's chat template renders

`enc` encodes a string by itself. Each function takes messages and a tokenizer and
returns the token ids and a mask, True on the tokens that the assistant writes: its
answers and their end tokens. A dialogue that ends with the assistant's message gets its
end token; any other stops where the assistant's answer begins.

A message has a role and content. ChatGLM3 and GLM-4 write its "metadata" (a tool's
name) after the role; ChatGLM3 lists a system message's "tools" after its content.
"""

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

from rlhf_jax.data.tokenizers.tokenizer import (
    Tokenizer,
    TransformersTokenizer,
)

Message = dict[str, Any]
Encoded = tuple[list[int], list[bool]]
_QUESTION = {"role": "user", "content": "?"}


def chatglm(messages: Sequence[Message], tokenizer: Tokenizer) -> Encoded:
    """Encode for ChatGLM-6B: a lone question is bare, longer talks count from round 0.

    Only the last answer is masked True: earlier answers are text of the context, which
    all tokens see, and have no end token.
    """
    if len(messages) <= 2:
        text = _by_turns(messages)[0][0]
    else:
        text = _rounds(messages, first=0, gap="\n")
    marks = [tokenizer.special_id("[gMASK]"), tokenizer.special_id("<sop>")]
    return _answered(tokenizer.encode(text) + marks, messages, tokenizer)


def chatglm2(messages: Sequence[Message], tokenizer: Tokenizer) -> Encoded:
    """Encode for ChatGLM2, with rounds numbered from 1.

    Only the last answer is masked True: earlier answers have no end token.
    """
    marks = [tokenizer.special_id("[gMASK]"), tokenizer.special_id("sop")]
    text = _rounds(messages, first=1, gap="\n\n")
    return _answered(marks + tokenizer.encode(text), messages, tokenizer)


def chatglm3(messages: Sequence[Message], tokenizer: Tokenizer) -> Encoded:
    """Encode for ChatGLM3: the newline before an answer belongs to the answer."""

    def split(message: Message) -> tuple[list[int], list[int]]:
        head = message.get("metadata", "") + "\n"
        text = message["content"]
        if message["role"] == "system" and "tools" in message:
            text += "\n" + json.dumps(message["tools"], indent=4, ensure_ascii=False)
        role = [tokenizer.special_id(f"<|{message['role']}|>")]
        return role, tokenizer.encode(head) + tokenizer.encode(text)

    marks = [tokenizer.special_id("[gMASK]"), tokenizer.special_id("sop")]
    begin = [tokenizer.special_id("<|assistant|>")]
    return _role_by_role(marks, split, begin, messages, tokenizer)


def glm4(messages: Sequence[Message], tokenizer: Tokenizer) -> Encoded:
    """Encode for GLM-4: the newline before an answer belongs to the prompt."""

    def split(message: Message) -> tuple[list[int], list[int]]:
        if "tools" in message:
            raise ValueError("The format 'glm4' has no tools; use a chat template.")
        metadata = message.get("metadata", "")
        head = tokenizer.encode(metadata + "\n")
        text = tokenizer.encode(message["content"])
        role = [tokenizer.special_id(f"<|{message['role']}|>")]
        # The assistant itself writes the name of the tool that it calls.
        return (role, head + text) if metadata else (role + head, text)

    marks = [tokenizer.special_id("[gMASK]"), tokenizer.special_id("<sop>")]
    begin = [tokenizer.special_id("<|assistant|>"), *tokenizer.encode("\n")]
    return _role_by_role(marks, split, begin, messages, tokenizer)


def template(messages: Sequence[Message], tokenizer: TransformersTokenizer) -> Encoded:
    """Encode by the tokenizer's chat template: an answer follows its prompt's tokens.

    An earlier answer is masked True where the template leaves the answer unchanged
    (some templates cut thoughts out of earlier answers).
    """
    if messages[-1]["role"] != "assistant":
        ids = tokenizer.encode_chat(messages)
        mask = [False] * len(ids)
    else:
        prompt = tokenizer.encode_chat(messages[:-1])
        answer = _template_answer(messages[-1]["content"], tokenizer)
        ids, mask = prompt + answer, [False] * len(prompt) + [True] * len(answer)
    for i, message in enumerate(messages[:-1]):
        if message["role"] == "assistant":
            *answer, _ = _template_answer(message["content"], tokenizer)
            prompt = tokenizer.encode_chat(messages[:i])
            *same, end = ids[: len(prompt) + len(answer) + 1]
            if same == prompt + answer and end in tokenizer.stop_ids:
                mask[len(prompt) : len(same) + 1] = [True] * (len(answer) + 1)
    return ids, mask


FORMATS: dict[str, Callable[[Sequence[Message], Any], Encoded]] = {
    "chatglm": chatglm,
    "chatglm2": chatglm2,
    "chatglm3": chatglm3,
    "glm4": glm4,
    "template": template,
}


def answer_lead(tokenizer: Tokenizer) -> str:
    """Return the text that the assistant writes before its answer, as decoded."""
    if tokenizer.chat_format == "chatglm3":
        return "\n "
    if tokenizer.chat_format == "template":
        return _template_frame(tokenizer)[0]
    return ""


def _by_turns(messages: Sequence[Message]) -> list[tuple[str, str | None]]:
    """Return questions with their answers, None for an answer yet to come."""
    for i, message in enumerate(messages):
        expected = ("user", "assistant")[i % 2]
        if message["role"] != expected:
            raise ValueError(
                "ChatGLM-6B and ChatGLM2 take questions and answers in turn: message "
                f"{i} should be the {expected}'s, not the {message['role']}'s. Move "
                "the text of a system message into the first question."
            )
    texts = [message["content"] for message in messages]
    texts += [None] * (len(texts) % 2)
    return list(zip(texts[::2], texts[1::2], strict=True))


def _rounds(messages: Sequence[Message], *, first: int, gap: str) -> str:
    """Return all rounds as text, up to the last answer."""
    *earlier, (question, _) = _by_turns(messages)
    text = ""
    for i, (q, a) in enumerate(earlier, first):
        text += f"[Round {i}]{gap}问：{q}{gap}答：{a}{gap}"
    return text + f"[Round {first + len(earlier)}]{gap}问：{question}{gap}答："


def _answered(prompt: list[int], messages, tokenizer: Tokenizer) -> Encoded:
    """Return the prompt's tokens, then the last message and its end if an answer."""
    answer = []
    if messages[-1]["role"] == "assistant":
        answer = [*tokenizer.encode(messages[-1]["content"]), tokenizer.end_id]
    return prompt + answer, [False] * len(prompt) + [True] * len(answer)


def _role_by_role(marks, split, begin, messages, tokenizer: Tokenizer) -> Encoded:
    """Encode each message after its role; the next role's token ends an answer.

    Args:
        marks: the first tokens of the dialogue.
        split: a function that splits a message's tokens in two: the role and all that
            precedes the text, and the text.
        begin: the tokens before an answer.
    """
    ids, mask = list(marks), [False] * len(marks)
    after_answer = False
    for message in messages:
        start, text = split(message)
        ends_answer = after_answer and start[0] in tokenizer.stop_ids
        after_answer = message["role"] == "assistant"
        ids += start + text
        mask += [ends_answer] + [False] * (len(start) - 1)
        mask += [after_answer] * len(text)
    if after_answer:
        return [*ids, tokenizer.end_id], [*mask, True]
    return ids + begin, mask + [False] * len(begin)


def _template_answer(text: str, tokenizer: TransformersTokenizer) -> list[int]:
    lead, end, encode = _template_frame(tokenizer)
    before, opened, rest = text.partition("<think>")
    thought, closed, answer = rest.partition("</think>")
    if opened and closed and not before.strip():
        around = _thought_frame(tokenizer)
        if around is not None:
            text = around[0] + thought.strip() + around[1] + answer.lstrip("\n")
            return [*encode(text), end]
        if _prompt_of_question(tokenizer).rstrip().endswith("</think>"):
            text = answer.lstrip("\n")  # the prompt says that there is no thought
    return [*encode(lead + text), end]


@functools.lru_cache(maxsize=8)
def _prompt_of_question(tokenizer: TransformersTokenizer) -> str:
    return tokenizer.render([_QUESTION], to_answer=True)


@functools.lru_cache(maxsize=8)
def _thought_frame(tokenizer: TransformersTokenizer) -> tuple[str, str] | None:
    """Return the texts that the template puts before a thought and between it and the
    answer, as GLM-4.5's does; None for a template that does not write thoughts so."""
    answer = {"role": "assistant", "content": "<think>thought</think>\nanswer"}
    before = _prompt_of_question(tokenizer)
    whole = tokenizer.render([_QUESTION, answer], to_answer=False)
    lead, is_there, rest = whole.removeprefix(before).partition("thought")
    middle, follows, _ = rest.partition("answer")
    right = lead.endswith("<think>") and middle.startswith("</think>")
    is_whole = whole.startswith(before) and is_there and follows and right
    return (lead, middle) if is_whole else None


@functools.lru_cache(maxsize=8)
def _template_frame(
    tokenizer: TransformersTokenizer,
) -> tuple[str, int, Callable[[str], list[int]]]:
    """Return the text that the template puts before an answer, the end token, and the
    method of the tokenizer that encodes an answer as the template does."""
    answer = {"role": "assistant", "content": "answer"}
    before = _prompt_of_question(tokenizer)
    whole = tokenizer.render([_QUESTION, answer], to_answer=False)
    lead, middle, trail = whole.removeprefix(before).partition("answer")
    if not whole.startswith(before) or not middle:
        return "", tokenizer.end_id, tokenizer.encode
    ends = [i for i in tokenizer.encode_rendered(trail) if i in tokenizer.stop_ids]
    prompt, ids = map(tokenizer.encode_rendered, (before, whole))
    after = tokenizer.encode_after(f"{lead}answer")
    is_after = ids[len(prompt) :][: len(after)] == after
    encode = tokenizer.encode_after if is_after else tokenizer.encode
    return lead, ends[0] if ends else tokenizer.end_id, encode
