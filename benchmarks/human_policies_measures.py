"""The measurements that benchmarks/human_policies.py makes of a policy.

1. Answers to held-out prompts, sampled: tokens, KL to the instruct model in nats, and
   the scores of both proxies, of the judge and of the second judge.
2. What a policy may forget, as log-probabilities, which move before an answer does: of
   plain text and of people's answers to instructions (nats per token); and the
   log-probability of the right end of a sentence less that of the likeliest of three
   wrong ones, for 200 plain facts and for 20 questions after the model's own name and
   maker (human_policies_items.json).
3. The greedy answers to these 20 questions and to 50 requests for JSON.
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.frozen_heads import choose_ridge, fit_head, hidden_states
from rlhf_jax.data.batching import sft_batch
from rlhf_jax.data.cleaning.length_balance import length_balance
from rlhf_jax.data.encoding import Pair, encode_dialogues, encode_pairs
from rlhf_jax.data.records import Comparison, Dialogue, Prompt, prompt_id
from rlhf_jax.data.tokenizers.tokenizer import Tokenizer
from rlhf_jax.evaluation.answers import Answers, answer, scores, sequence_logprobs
from rlhf_jax.files import read_json
from rlhf_jax.generation.sampling import sampling_with
from rlhf_jax.generation.scoring import dialogue_logprobs
from rlhf_jax.training import weights

ITEMS = Path(__file__).with_name("human_policies_items.json")
CHOICES = 4  # ends of an item's sentence, the right one first
WIDTHS = 32  # tokens; widths of batches are rounded up to a multiple
CHUNK = 64  # positions of a row that are projected to the vocabulary at once
REGULARISATION = 0.01  # of the second judge's head, as in the reward stage
BUCKET = 10  # tokens, the width of a bucket of length balancing
FENCED = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL)

Example = tuple[list[int], list[bool]]  # token ids, and which of them are counted


class Limits(NamedTuple):
    """How policies answer when they are measured."""

    prompts: int  # this many of the evaluation prompts
    max_prompt_tokens: int
    max_response_tokens: int
    temperature: float
    batch_size: int  # rows side by side
    text_tokens: int = 128  # of a piece of plain text
    text_pieces: int = 48
    people: int = 96  # this many of people's answers to instructions
    max_dialogue_tokens: int = 256


class Instruments(NamedTuple):
    """All that policies are measured with."""

    tokenizer: Tokenizer
    reference: str  # the folder of the instruct model
    scorers: dict[str, str]  # the workdirs of the reward models by name
    second: dict[str, np.ndarray]  # the second judge, see `fit_second_judge`
    prompts: list[Prompt]
    examples: dict[str, list[Example]]
    limits: Limits


# Texts whose log-probability is measured


def examples_of(
    tokenizer: Tokenizer, text: str, dialogues: Sequence[Dialogue], limits: Limits
) -> dict[str, list[Example]]:
    """Encode the plain text, people's answers, the facts and the name."""
    items = read_json(ITEMS)
    people, _ = encode_dialogues(dialogues, tokenizer, limits.max_dialogue_tokens)
    return {
        "text": pieces(tokenizer.encode(text), limits.text_tokens, limits.text_pieces),
        "people": people[: limits.people],
        "facts": [
            _ending(tokenizer, sentence, end)
            for sentence, *ends in items["facts"]
            for end in ends
        ],
        "name": [
            encode_dialogues(
                [Dialogue((*_asked(question), _said(end)))], tokenizer, 1 << 20
            )[0][0]
            for question, *ends in items["identity"]
            for end in ends
        ],
    }


def pieces(ids: Sequence[int], size: int, count: int) -> list[Example]:
    """Cut `count` pieces of `size` tokens out of a text, at equal distances; the first
    token of a piece is not counted."""
    starts = np.linspace(0, max(len(ids) - size, 0), count).astype(int)
    counted = [False] + [True] * (size - 1)
    cut = [list(ids[start : start + size]) for start in starts]
    return [(piece, counted[: len(piece)]) for piece in cut]


def _ending(tokenizer: Tokenizer, sentence: str, end: str) -> Example:
    start, more = tokenizer.encode(sentence), tokenizer.encode(f" {end}")
    return start + more, [False] * len(start) + [True] * len(more)


def _asked(question: str) -> tuple[dict[str, str]]:
    return ({"role": "user", "content": question},)


def _said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@jax.jit
def _sums(model, batch):
    logprobs, mask = dialogue_logprobs(
        model, batch, num_tokens=model.config.vocab_size, chunk_size=CHUNK
    )
    return jnp.where(mask, logprobs, 0.0).sum(axis=1)


def summed_logprobs(
    model, examples: Sequence[Example], *, pad_id: int, batch_size: int
) -> np.ndarray:
    """Return the summed log-probability of the counted tokens: float32 [examples]."""
    order = np.argsort([len(ids) for ids, _ in examples], kind="stable")
    sums = np.empty(len(examples), np.float32)
    for start in range(0, len(examples), batch_size):
        rows = order[start : start + batch_size]
        batch = sft_batch(
            [examples[i] for i in rows],
            pad_id=pad_id,
            multiple=WIDTHS,
            batch_size=batch_size,
        )
        sums[rows] = np.asarray(_sums(model, batch))[: len(rows)]
    return sums


def margins(logprobs: np.ndarray) -> np.ndarray:
    """Return the log-probability of each item's right end less that of its likeliest
    wrong one: float [items].

    Args:
        logprobs: float [items * CHOICES], the right end of each item first.
    """
    by_item = logprobs.reshape(-1, CHOICES)
    return by_item[:, 0] - by_item[:, 1:].max(axis=1)


# Greedy answers


def names_itself(text: str) -> bool:
    """Return True if an answer names the model or its maker."""
    return "smollm" in text.lower() or "hugging face" in text.lower()


def is_json(text: str) -> bool:
    """Return True if an answer, or the one fenced block in it, is a JSON object or
    list."""
    fenced = FENCED.findall(text)
    try:
        value = json.loads(fenced[0] if len(fenced) == 1 else text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict | list)


# The second judge


def fit_second_judge(
    model,
    tokenizer: Tokenizer,
    comparisons: Sequence[Comparison],
    held_out: Sequence[Comparison],
    *,
    max_prompt_tokens: int,
    max_response_tokens: int,
    tokens_at_once: int,
) -> dict[str, np.ndarray]:
    """Fit a linear head on the instruct model's hidden state at a response's last
    token, to comparisons that are balanced by length.

    Returns:
        "head" float32 [D] and "std" float32 [D]: a score is hidden / std @ head; and
        "margins" of the held-out comparisons, float32.
    """

    def encoded(records):
        return encode_pairs(
            records,
            tokenizer=tokenizer,
            max_prompt_tokens=max_prompt_tokens,
            max_response_tokens=max_response_tokens,
            too_long="truncate_prompt",
        )[:2]

    kept, pairs = encoded(comparisons)
    lengths = np.array([[len(a), len(b)] for _, a, b in pairs])
    keep = length_balance(*lengths.T, width=BUCKET, seed=0).keep
    pairs = [pair for pair, is_kept in zip(pairs, keep, strict=True) if is_kept]
    kept = [c for c, is_kept in zip(kept, keep, strict=True) if is_kept]
    conversation = [c.prompt.messages[0]["content"] for c in kept]
    groups = np.unique(conversation, return_inverse=True)[1]
    features = _features(model, pairs, tokenizer.pad_id, tokens_at_once)
    mean, std = features.mean(axis=(0, 1)), features.std(axis=(0, 1)) + 1e-6

    def fit(x, weight, *, ridge):
        return fit_head(x, weight, regularisation=REGULARISATION, ridge=ridge)

    features = (features - mean) / std
    ridge = choose_ridge(features, groups, fit)
    head = np.asarray(fit(features, np.ones(len(features), np.float32), ridge=ridge))
    test = _features(model, encoded(held_out)[1], tokenizer.pad_id, tokens_at_once)
    margins = np.subtract(*np.moveaxis(test / std @ head, 1, 0))
    return {"head": head, "std": std, "margins": margins}


def _features(model, rows: Sequence[Pair], pad_id: int, tokens_at_once: int):
    """Return the hidden states at the ends of two responses: float32 [rows, 2, D]."""
    sizes = [sum(map(len, row)) for row in rows]
    order = np.argsort(sizes, kind="stable")
    count = max(1, tokens_at_once // max(sizes))
    states = hidden_states(
        model, [rows[i] for i in order], pad_id=pad_id, batch_size=count
    )
    unsorted = np.empty(states.shape, np.float32)
    unsorted[order] = states
    return unsorted


def second_scores(
    model, given: Answers, second: dict[str, np.ndarray], *, pad_id: int, tokens: int
) -> np.ndarray:
    """Return the second judge's score of each answer: float32 [answers].

    Args:
        model: the instruct model.
    """
    rows = [
        (prompt, response, response[-1:])
        for prompt, response in zip(given.prompt_ids, given.response_ids, strict=True)
    ]
    states = _features(model, rows, pad_id, tokens)[:, 0]
    return states / second["std"] @ second["head"]


# A policy


def measure(
    model, instruments: Instruments, load: Callable = weights.load_whole
) -> tuple[Answers, dict[str, np.ndarray]]:
    """Measure a policy.

    Returns:
        Its answers, and by name: per prompt "tokens", "ended", "kl", a score for each
        name of `scorers`, "second"; per piece "text" and per dialogue "people", in nats
        per token; per item "facts" and "name"; "named" and "json", 1 or 0.
    """
    tokenizer, limits = instruments.tokenizer, instruments.limits
    batches = {"pad_id": tokenizer.pad_id, "batch_size": limits.batch_size}
    reference = load(instruments.reference, dtype="float32", scan_layers=True)

    def ask(prompts: Sequence[Prompt], temperature: float) -> Answers:
        return answer(
            model,
            prompts,
            tokenizer,
            jax.random.key(0),  # the same draws for every policy
            sampling_with(
                tokenizer,
                max_new_tokens=limits.max_response_tokens,
                temperature=temperature,
            ),
            max_prompt_tokens=limits.max_prompt_tokens,
            batch_size=limits.batch_size,
        )

    given = ask(instruments.prompts, limits.temperature)
    ours, theirs = (
        sequence_logprobs(
            of,
            given,
            num_tokens=tokenizer.vocab_size,
            chunk_size=CHUNK,
            temperature=limits.temperature,
            **batches,
        )
        for of in (model, reference)
    )
    values = {"tokens": given.lengths, "ended": given.ended, "kl": ours - theirs}
    tokens = limits.batch_size * limits.max_response_tokens
    values["second"] = second_scores(
        reference, given, instruments.second, pad_id=tokenizer.pad_id, tokens=tokens
    )
    del reference
    for name, folder in instruments.scorers.items():
        values[name] = scores(load(folder, dtype="float32"), given, **batches)

    for name, examples in instruments.examples.items():
        sums = summed_logprobs(model, examples, **batches)
        if name in ("text", "people"):
            values[name] = sums / [sum(counted) for _, counted in examples]
        else:
            values[name] = margins(sums)
    items = read_json(ITEMS)
    questions = [question for question, *_ in items["identity"]]
    for name, passes, requests in (
        ("named", names_itself, questions),
        ("json", is_json, items["json"]),
    ):
        prompts = [Prompt(prompt_id(_asked(x)), _asked(x)) for x in requests]
        values[name] = np.array([passes(text) for text in ask(prompts, 0.0).texts])
    return given, {name: np.asarray(x, np.float32) for name, x in values.items()}
