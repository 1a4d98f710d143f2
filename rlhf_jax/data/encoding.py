"""Records to token ids, with a count of what was left out. Nothing is ever cut."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rlhf_jax.data.chat import encode_dialogue, encode_prompt, encode_response
from rlhf_jax.data.records import Comparison, Dialogue, Prompt, read_records
from rlhf_jax.data.tokenizers import Tokenizer

Example = tuple[list[int], list[bool]]  # token ids, and which of them carry loss
Pair = tuple[list[int], list[int], list[int]]  # prompt, chosen, rejected


def encode_dialogues(
    path: str | Path, tokenizer: Tokenizer, max_tokens: int
) -> tuple[list[Example], int]:
    """The dialogues of a file that fit, and how many did not."""
    dialogues = read_records(path, Dialogue)
    examples = [encode_dialogue(d.messages, tokenizer) for d in dialogues]
    kept = [(ids, mask) for ids, mask in examples if len(ids) <= max_tokens]
    if not kept:
        raise ValueError(f"No dialogue of {path} fits {max_tokens=}.")
    return kept, len(examples) - len(kept)


def encode_prompts(
    prompts: Sequence[Prompt], tokenizer: Tokenizer, max_prompt_tokens: int
) -> tuple[list[Prompt], list[list[int]]]:
    """The prompts that fit, and their token ids."""
    encoded = [(p, encode_prompt(p.messages, tokenizer)) for p in prompts]
    kept = [(p, ids) for p, ids in encoded if len(ids) <= max_prompt_tokens]
    if not kept:
        raise ValueError(f"None of {len(prompts)} prompts fits {max_prompt_tokens=}.")
    return [p for p, _ in kept], [ids for _, ids in kept]


def encode_pairs(
    comparisons: Sequence[Comparison],
    *,
    tokenizer: Tokenizer,
    max_prompt_tokens: int,
    max_response_tokens: int,
) -> tuple[list[Pair], Counter]:
    """Token ids of every comparison that can be trained on.

    A response is never cut. Left out, and counted by reason: ties, empty or identical
    responses, prompts and responses above their limits.

    Raises:
        ValueError: nothing is left; says why each was dropped.
    """
    pairs, dropped = [], Counter()
    for comparison in comparisons:
        reason = _unusable(comparison)
        if reason:
            dropped[reason] += 1
            continue
        prompt = encode_prompt(comparison.prompt.messages, tokenizer)
        chosen = encode_response(comparison.chosen, tokenizer)
        rejected = encode_response(comparison.rejected, tokenizer)
        if len(prompt) > max_prompt_tokens:
            dropped["prompt too long"] += 1
        elif max(len(chosen), len(rejected)) > max_response_tokens:
            dropped["response too long"] += 1
        else:
            pairs.append((prompt, chosen, rejected))
    if not pairs:
        raise ValueError(f"No comparison can be trained on; dropped: {dict(dropped)}.")
    return pairs, dropped


def _unusable(comparison: Comparison) -> str:
    if comparison.preference == "tie":
        return "tie"
    if not comparison.response_a.strip() or not comparison.response_b.strip():
        return "empty response"
    if comparison.response_a == comparison.response_b:
        return "identical responses"
    return ""
