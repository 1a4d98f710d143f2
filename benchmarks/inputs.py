"""Inputs that benchmarks share: prompts, pairs, optimizer, sampling and its FLOPs."""

import functools

import numpy as np

from rlhf_jax.batches import PromptBatch
from rlhf_jax.data.batching import prompt_batch
from rlhf_jax.generation.responses import ring_sizes
from rlhf_jax.generation.sampling import Sampling
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.planning.flops import count_flops
from rlhf_jax.planning.programs import generation
from rlhf_jax.training.optimizers import Optimizer, adamw


def random_prompts(count: int, *, longest: int, vocab_size: int) -> list[list[int]]:
    """Return prompts of a quarter of `longest` to `longest` random tokens."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(longest // 4, longest + 1, count)
    return [rng.integers(4, vocab_size, n).tolist() for n in lengths]


def random_prompt_batch(count: int, *, longest: int, vocab_size: int) -> PromptBatch:
    """Return `random_prompts` as a batch, left-padded to `longest` tokens."""
    prompts = random_prompts(count, longest=longest, vocab_size=vocab_size)
    return prompt_batch(prompts, np.arange(count), pad_id=0, width=longest)


def full_length(
    response: int,
    *,
    vocab_size: int,
    top_k: int = 0,
    top_p: float = 1.0,
    stop_id: int = 0,
) -> Sampling:
    """Return sampling of `response` tokens at temperature 1, none of which ends a
    response."""
    return Sampling(
        max_new_tokens=response,
        temperature=1.0,
        top_k=top_k,
        top_p=top_p,
        min_new_tokens=response,
        stop_ids=(stop_id,),
        pad_id=0,
        num_tokens=vocab_size,
    )


def random_pairs(pairs: int, *, prompt: int, response: int, vocab_size: int) -> list:
    """Return triples (prompt, chosen, rejected) of random tokens of full length."""
    rng = np.random.default_rng(0)
    return [
        tuple(
            rng.integers(0, vocab_size, n).tolist()
            for n in (prompt, response, response)
        )
        for _ in range(pairs)
    ]


LEARNING_RATE = 1e-6  # so small that random weights hardly change


def plain_adamw() -> Optimizer:
    """Return the AdamW of most trainers; the learning rate is passed at each step."""
    return adamw(None, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, clip_norm=1.0)


def sampling_operations(
    model: ChatGLM, batch: PromptBatch, key, sampling: Sampling
) -> int:
    """Count the FLOPs of a rollout's matrix products, for full-length responses."""
    loops = min(len(ring_sizes(sampling.max_new_tokens)), 2)
    return count_flops(
        functools.partial(generation, share=1, sampling=sampling),
        *(model, batch.prompts, batch.prompt_mask, key),
        loop_steps=sampling.max_new_tokens // loops,
    )
