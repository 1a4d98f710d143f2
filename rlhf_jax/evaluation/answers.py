"""A model's answers to prompts, their scores and their log-probabilities."""

import functools
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.data.batching import pad_left, pad_right, round_up
from rlhf_jax.data.encoding import encode_prompts, sampled_response
from rlhf_jax.data.records import Prompt, Response
from rlhf_jax.data.tokenizers.chat import encode_prompt
from rlhf_jax.data.tokenizers.tokenizer import Tokenizer
from rlhf_jax.files import writing_whole
from rlhf_jax.generation.responses import sample_responses
from rlhf_jax.generation.sampling import Sampling, sampling_with
from rlhf_jax.generation.scoring import response_logprobs, response_scores
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.heads import ScoreModel
from rlhf_jax.parallel.sharding import fetch


class Answers(NamedTuple):
    """One sampled answer of a model to each prompt, with token ids."""

    prompts: list[Prompt]
    prompt_ids: list[list[int]]
    responses: list[Response]

    @property
    def texts(self) -> list[str]:
        return [response.text for response in self.responses]

    @property
    def response_ids(self) -> list[list[int]]:
        """The token ids of each answer, with the end token where the answer ended."""
        return [response.tokens for response in self.responses]

    @property
    def ended(self) -> np.ndarray:
        """True for answers that ended before the length limit: bool [prompts]."""
        return np.array([response.ended for response in self.responses])

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(ids) for ids in self.response_ids])


def answer(
    model: ChatGLM,
    prompts: Sequence[Prompt],
    tokenizer: Tokenizer,
    key: jax.Array,
    sampling: Sampling,
    *,
    max_prompt_tokens: int,
    batch_size: int,
) -> Answers:
    """Sample an answer to every prompt of at most `max_prompt_tokens` tokens."""
    kept, prompt_ids = encode_prompts(prompts, tokenizer, max_prompt_tokens)
    groups = sample_responses(
        model, prompt_ids, key, sampling, samples=1, rows=batch_size
    )
    answers = [sampled_response(ids, tokenizer) for (ids,) in groups]
    return Answers(kept, prompt_ids, answers)


def sample_conversations(
    model: ChatGLM,
    prompts: Sequence[Prompt],
    tokenizer: Tokenizer,
    *,
    count: int,
    max_prompt_tokens: int,
    max_response_tokens: int,
) -> list[dict]:
    """Answer the first `count` prompts that fit greedily; return records for
    samples.jsonl."""
    fitting = (
        prompt
        for prompt in prompts
        if len(encode_prompt(prompt.messages, tokenizer)) <= max_prompt_tokens
    )
    chosen = list(itertools.islice(fitting, count))
    if not chosen:
        return []
    sampling = sampling_with(
        tokenizer,
        max_new_tokens=max_response_tokens,
        temperature=0.0,
    )
    answers = answer(
        model,
        chosen,
        tokenizer,
        jax.random.key(0),  # greedy decoding draws nothing from the key
        sampling,
        max_prompt_tokens=max_prompt_tokens,
        batch_size=len(chosen),
    )
    return [
        {
            "prompt": prompt.messages[-1]["content"],
            "response": response.text,
            "ended": response.ended,
            "reward": None,
        }
        for prompt, response in zip(answers.prompts, answers.responses, strict=True)
    ]


def scores(
    reward_model: ScoreModel, answers: Answers, *, pad_id: int, batch_size: int
) -> np.ndarray:
    """Return the reward model's score of each answer: float32 [prompts]."""
    return _by_batch(_scores, reward_model, answers, pad_id, batch_size)


@jax.jit
def _scores(model, *batch):
    return response_scores(model, *batch)[:, 0]


def sequence_logprobs(
    model: ChatGLM,
    answers: Answers,
    *,
    num_tokens: int,
    chunk_size: int,
    pad_id: int,
    batch_size: int,
    temperature: float = 1.0,
) -> np.ndarray:
    """Return the summed log-probability of each answer: float32 [prompts]."""
    logprobs = functools.partial(
        _logprobs,
        num_tokens=num_tokens,
        chunk_size=chunk_size,
        temperature=temperature,
    )
    return _by_batch(logprobs, model, answers, pad_id, batch_size)


@functools.partial(jax.jit, static_argnames=("num_tokens", "chunk_size", "temperature"))
def _logprobs(model, prompts, prompt_mask, responses, response_mask, **options):
    out = response_logprobs(
        model, prompts, prompt_mask, responses, response_mask, **options
    )
    return jnp.where(response_mask, out.logprobs, 0.0).sum((1, 2))


def logprob_derivatives(
    model: ChatGLM,
    answers: Answers,
    key: jax.Array,
    *,
    directions: int,
    num_tokens: int,
    chunk_size: int,
    pad_id: int,
    batch_size: int,
    temperature: float,
) -> np.ndarray:
    """Return the derivatives of the summed log-probability of each answer along random
    directions, standard normal over all parameters: float32 [prompts, directions]."""
    derivatives = functools.partial(
        _derivatives,
        keys=jax.random.split(key, directions),
        num_tokens=num_tokens,
        chunk_size=chunk_size,
        temperature=temperature,
    )
    return _by_batch(derivatives, model, answers, pad_id, batch_size)


@functools.partial(jax.jit, static_argnames=("num_tokens", "chunk_size", "temperature"))
def _derivatives(model, *batch, keys, **options):
    """Return the derivatives [B, directions]; one direction is in memory at a time."""

    def logprobs(floats):
        return _logprobs(_with_floats(model, floats), *batch, **options)

    # Forward mode, as the transpose of reverse mode: the projection to the vocabulary
    # (losses/logprobs.py) has a rule of its own for reverse mode, and none for forward.
    sums, backward = jax.vjp(logprobs, _floats(model))
    forward = jax.linear_transpose(lambda weights: backward(weights)[0], sums)
    return jax.lax.map(lambda key: forward(random_direction(key, model))[0], keys).T


def random_direction(key: jax.Array, model: ChatGLM) -> list[jax.Array]:
    """Return standard normal numbers in the shapes of the model's parameters, of those
    that are no integers, in the order of its leaves."""
    floats = _floats(model)
    pairs = zip(jax.random.split(key, len(floats)), floats, strict=True)
    return [jax.random.normal(k, x.shape, x.dtype) for k, x in pairs]


def _floats(model):
    return [x for x in jax.tree.leaves(model) if jnp.issubdtype(x.dtype, jnp.floating)]


def _with_floats(model, floats):
    left, (leaves, structure) = iter(floats), jax.tree.flatten(model)
    is_float = [jnp.issubdtype(x.dtype, jnp.floating) for x in leaves]
    new = [next(left) if f else x for f, x in zip(is_float, leaves, strict=True)]
    return jax.tree.unflatten(structure, new)


def _by_batch(function, model, answers: Answers, pad_id: int, batch_size: int):
    """Apply `function(model, prompts, prompt_mask, responses [B, 1, R], mask)` to all
    answers, `batch_size` at a time; the last batch is filled with the first answers."""
    count = len(answers.prompts)
    prompt_width = round_up(max(map(len, answers.prompt_ids)), 16)
    width = round_up(max(map(len, answers.response_ids)), 16)
    batches = []
    for start in range(0, count, batch_size):
        index = np.arange(start, start + batch_size) % count
        prompts = pad_left([answers.prompt_ids[i] for i in index], prompt_width, pad_id)
        tokens, mask = pad_right(
            [answers.response_ids[i] for i in index], width, pad_id
        )
        batch = (*prompts, tokens[:, None], mask[:, None])
        batches.append(fetch(function(model, *batch)))
    return np.concatenate(batches)[:count]


def write_answers(path: Path, answers: Answers, **columns: np.ndarray) -> None:
    """Write one JSON line per answer: the prompt, the response and the given numbers,
    null for NaN."""
    with writing_whole(path) as file:
        for i, prompt in enumerate(answers.prompts):
            record = {
                "id": prompt.id,
                "intent": prompt.intent,
                "prompt": prompt.messages[-1]["content"],
                "response": answers.responses[i].text,
                "ended": answers.responses[i].ended,
                **{name: _json_number(values[i]) for name, values in columns.items()},
            }
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _json_number(value) -> float | None:
    return None if np.isnan(value) else float(value)
