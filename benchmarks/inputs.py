"""Inputs that benchmarks share: prompts, pairs, optimizer, FLOPs of sampling."""

import functools

import numpy as np

from rlhf_jax.batches import PromptBatch
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
