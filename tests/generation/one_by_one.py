"""Responses sampled without a cache, which those of the package have to equal."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.data.batching import pad_right
from rlhf_jax.generation.responses import Responses
from rlhf_jax.generation.rows import row_keys
from rlhf_jax.generation.sampling import sample


def one_by_one(model, prompts, key, sampling, *, samples, numbers=None) -> Responses:
    """Sample by a forward pass over all tokens for every token, each row by itself."""
    rows = [list(prompt) for prompt in prompts for _ in range(samples)]
    begins = np.array(list(map(len, rows)))
    numbers = np.arange(len(rows)) if numbers is None else numbers
    keys, live = row_keys(key, jnp.asarray(numbers)), np.ones(len(rows), bool)
    width = begins.max() + sampling.max_new_tokens
    log, ended = np.zeros((len(rows), sampling.max_new_tokens)), ~live
    for step in range(sampling.max_new_tokens):
        tokens, mask = pad_right(rows, width, 0)
        ends = np.array(list(map(len, rows))) - 1
        new = _draw(model, tokens, mask, ends, keys, step, sampling)
        for row in np.flatnonzero(live):
            rows[row].append(int(new.tokens[row]))
            log[row, step] = new.logprobs[row]
        ended |= live & np.isin(new.tokens, sampling.stop_ids)
        live &= ~ended
    answers = [row[first:] for row, first in zip(rows, begins, strict=True)]
    tokens, _ = pad_right(answers, sampling.max_new_tokens, sampling.pad_id)
    lengths = np.array(list(map(len, answers)))
    return Responses(tokens, log, lengths, ended, np.ones(len(rows), bool))


@functools.partial(jax.jit, static_argnames="sampling")
def _draw(model, tokens, mask, ends, keys, step, sampling):
    logits = model(tokens, mask)[jnp.arange(len(tokens)), ends]
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
    return sample(logits, keys, sampling, step + 1 >= sampling.min_new_tokens)
