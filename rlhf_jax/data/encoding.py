"""Encoding of records into token ids, with counts of the records left out.

A response of a pair is never cut, and a response that generation cut gets no end token:
training and scoring end a response where PPO ends it. Each process of a run encodes its
share.
"""

import functools
from collections import Counter
from collections.abc import Iterator, Sequence

from rlhf_jax.data.records import Comparison, Dialogue, Message, Prompt, Response
from rlhf_jax.data.tokenizers.chat import (
    decode_response,
    encode_dialogue,
    encode_prompt,
    encode_response,
)
from rlhf_jax.data.tokenizers.tokenizer import Tokenizer
from rlhf_jax.shared_work import share_out
from rlhf_jax.terminal import listed

Example = tuple[list[int], list[bool]]  # token ids, loss mask
Pair = tuple[list[int], list[int], list[int]]  # prompt, chosen, rejected


def encode_dialogues(
    dialogues: Sequence[Dialogue],
    tokenizer: Tokenizer,
    max_tokens: int,
    too_long: str = "drop",
    *,
    thoughts: bool = True,
) -> tuple[list[Example], Counter]:
    """Encode the dialogues that fit or can be cut to fit; also count those that are too
    long, by treatment.

    Args:
        too_long: "drop" drops long dialogues; "truncate_prompt" removes their oldest
            turns, and drops dialogues whose last turn is too long; "truncate_end" keeps
            their first tokens, so that a cut answer has no end token, and drops
            dialogues without an answer in these tokens.
        thoughts: whether the thought that an answer begins with carries loss.

    Raises:
        ValueError: no dialogue is left.
    """
    if too_long not in ("drop", "truncate_prompt", "truncate_end"):
        raise ValueError(
            f"{too_long=} must be 'drop', 'truncate_prompt' or 'truncate_end'."
        )

    encode_whole = functools.partial(
        encode_dialogue, tokenizer=tokenizer, thoughts=thoughts
    )

    def encode(dialogue: Dialogue) -> tuple[list[int], list[bool], str]:
        """Return ids and loss mask, empty if dropped, and the treatment to count."""
        ids, mask = encode_whole(dialogue.messages)
        if len(ids) <= max_tokens:
            return ids, mask, ""
        if too_long == "truncate_prompt":
            for messages in _from_each_turn(dialogue.messages):
                ids, mask = encode_whole(messages)
                if len(ids) <= max_tokens:
                    return ids, mask, "kept without its oldest turns"
        elif too_long == "truncate_end" and any(mask[:max_tokens]):
            return ids[:max_tokens], mask[:max_tokens], "kept without its end"
        return [], [], "too long and dropped"

    encoded = share_out(encode, dialogues)
    kept = [(ids, mask) for ids, mask, _ in encoded if ids]
    if not kept:
        raise ValueError(f"None of {len(dialogues)} dialogues fits {max_tokens=}.")
    return kept, Counter(note for *_, note in encoded if note)


def encode_prompts(
    prompts: Sequence[Prompt], tokenizer: Tokenizer, max_prompt_tokens: int
) -> tuple[list[Prompt], list[list[int]]]:
    """Return the prompts that fit, and their token ids."""
    encoded = share_out(lambda p: encode_prompt(p.messages, tokenizer), prompts)
    pairs = zip(prompts, encoded, strict=True)
    kept = [(p, ids) for p, ids in pairs if len(ids) <= max_prompt_tokens]
    if not kept:
        raise ValueError(f"None of {len(prompts)} prompts fits {max_prompt_tokens=}.")
    return [p for p, _ in kept], [ids for _, ids in kept]


def sampled_response(ids: Sequence[int], tokenizer: Tokenizer) -> Response:
    """Return the response of sampled token ids [R] without padding; the response ended
    if the last id is a stop token."""
    tokens = [int(token) for token in ids]
    ended = tokens[-1] in tokenizer.stop_ids
    return Response(decode_response(tokens, tokenizer), ended, tokens)


def response_ids(response: Response, tokenizer: Tokenizer) -> list[int]:
    """Return the token ids of a response, with an end token only if the response ended.

    The sampled ids are returned if this tokenizer decodes them to the response's text.
    Otherwise (another tokenizer's ids, or an edited text) the text is encoded.
    """
    tokens = response.tokens
    if tokens is not None and max(tokens) < tokenizer.vocab_size:
        ends_early = any(token in tokenizer.stop_ids for token in tokens[:-1])
        if not ends_early and sampled_response(tokens, tokenizer) == response:
            return list(tokens)
    ids = encode_response(response.text, tokenizer)
    return ids if response.ended else ids[:-1]


def encode_pairs(
    comparisons: Sequence[Comparison],
    *,
    tokenizer: Tokenizer,
    max_prompt_tokens: int,
    max_response_tokens: int,
    too_long: str = "drop",
) -> tuple[list[Comparison], list[Pair], Counter]:
    """Return the comparisons fit for training, their token ids, and counts by reason.

    Ties, empty or identical responses, and prompts and responses above their limits are
    dropped. A response is never cut. Its end token counts towards the limit; a response
    that generation cut has no end token, so every response that generation writes
    within a limit fits the same limit here.

    Args:
        too_long: the treatment of long prompts: "drop" drops the pair;
            "truncate_prompt" removes the prompt's oldest turns, and drops the pair only
            if the last turn is too long.

    Raises:
        ValueError: no comparison is left; the message counts the reasons.
    """
    if too_long not in ("drop", "truncate_prompt"):
        raise ValueError(f"{too_long=} must be 'drop' or 'truncate_prompt'.")

    def encode(comparison: Comparison) -> tuple[Pair | None, str]:
        """Return the pair, or None if dropped, and the treatment to count."""
        if reason := _unusable(comparison):
            return None, reason
        messages, note = comparison.prompt.messages, ""
        prompt = encode_prompt(messages, tokenizer)
        chosen, rejected = (response_ids(r, tokenizer) for r in comparison.responses)
        if max(len(chosen), len(rejected)) > max_response_tokens:
            return None, "response too long"
        if len(prompt) > max_prompt_tokens and too_long == "truncate_prompt":
            prompt = _without_oldest_turns(messages, tokenizer, max_prompt_tokens)
            note = "kept with a truncated prompt"
        if len(prompt) > max_prompt_tokens:
            return None, "prompt too long"
        return (prompt, chosen, rejected), note

    encoded = share_out(encode, comparisons)
    counts = Counter(note for _, note in encoded if note)
    pairs = zip(comparisons, encoded, strict=True)
    kept = [(comparison, tuple(pair)) for comparison, (pair, _) in pairs if pair]
    if not kept:
        raise ValueError(f"No comparison can be trained on; dropped: {listed(counts)}.")
    return [c for c, _ in kept], [pair for _, pair in kept], counts


def _without_oldest_turns(messages, tokenizer, max_tokens: int) -> list[int]:
    """Return the ids of the system's message and as many of the last turns as fit, or
    of the last turn alone if that is too long."""
    for shorter in _from_each_turn(messages):
        ids = encode_prompt(shorter, tokenizer)
        if len(ids) <= max_tokens:
            break
    return ids


def _from_each_turn(messages: Sequence[Message]) -> Iterator[list[Message]]:
    """Yield the system's message and all messages from a user's message on, for each
    user's message, the oldest first."""
    system = [m for m in messages[:1] if m["role"] == "system"]
    for start, message in enumerate(messages):
        if message["role"] == "user":
            yield [*system, *messages[start:]]


def _unusable(comparison: Comparison) -> str:
    if comparison.preference == "tie":
        return "tie"
    if not comparison.response_a.strip() or not comparison.response_b.strip():
        return "empty response"
    if comparison.response_a == comparison.response_b:
        return "identical responses"
    return ""
