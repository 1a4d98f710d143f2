"""What the benchmarks of training steps share: random pairs, and the optimizer."""

import numpy as np

from rlhf_jax.training.optimizers import Optimizer, adamw


def random_pairs(pairs: int, *, prompt: int, response: int, vocab_size: int) -> list:
    """(prompt, chosen, rejected) of random tokens, all of full length."""
    rng = np.random.default_rng(0)
    return [
        tuple(
            rng.integers(0, vocab_size, n).tolist()
            for n in (prompt, response, response)
        )
        for _ in range(pairs)
    ]


LEARNING_RATE = 1e-6  # leaves random weights as they are


def plain_adamw() -> Optimizer:
    """What most trainers use; each step brings its learning rate."""
    return adamw(None, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, clip_norm=1.0)
