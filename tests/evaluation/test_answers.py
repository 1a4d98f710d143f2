"""Conversations that a run leaves at its end, and derivatives of log-probabilities."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.data.records import Prompt, Response
from rlhf_jax.data.tokenizers.tokenizer import load_tokenizer, train_tokenizer
from rlhf_jax.evaluation.answers import (
    Answers,
    logprob_derivatives,
    random_direction,
    sample_conversations,
)
from tests.models.families import FAMILIES, random_model


@pytest.mark.parametrize(("count", "max_prompt_tokens"), [(0, 100), (3, 1)])
def test_a_run_may_leave_none(count, max_prompt_tokens, tmp_path):
    """It once failed at its very end where none was asked for, or none was short."""
    train_tokenizer(["a few words"], 270, tmp_path)
    prompts = [Prompt("p", ({"role": "user", "content": "a few words"},))] * 3
    found = sample_conversations(
        None,  # asked for nothing
        prompts,
        load_tokenizer(tmp_path),
        count=count,
        max_prompt_tokens=max_prompt_tokens,
        max_response_tokens=4,
    )
    assert found == []


TEMPERATURE, NUM_TOKENS, DIRECTIONS = 0.7, 62, 2
derivatives = functools.partial(
    logprob_derivatives,
    key=jax.random.key(5),
    directions=DIRECTIONS,
    num_tokens=NUM_TOKENS,
    chunk_size=8,  # of 16
    batch_size=2,
    temperature=TEMPERATURE,
)


@jax.jit
def gradient(model, tokens, first):
    """Return the gradient of the log-probability of `tokens[first:]`, without padding
    and by the definition."""

    def logprob(model):
        logits = model(tokens[None])[0, :-1, :NUM_TOKENS] / TEMPERATURE
        each = jax.nn.log_softmax(logits)[jnp.arange(len(tokens) - 1), tokens[1:]]
        return jnp.where(jnp.arange(1, len(tokens)) >= first, each, 0.0).sum()

    return jax.grad(logprob)(model)


def test_derivatives_are_those_of_each_answers_gradient():
    model = random_model(FAMILIES["v2"])
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 60, (3, 12)).astype(np.int32)  # one width, to compile once
    firsts = [5, 11, 2]
    prompts = [row[:first].tolist() for row, first in zip(rows, firsts, strict=True)]
    responses = [
        Response("", True, row[first:].tolist())
        for row, first in zip(rows, firsts, strict=True)
    ]
    answers = Answers([Prompt("p", ())] * 3, prompts, responses)
    measured = derivatives(model, answers, pad_id=0)
    assert measured.shape == (3, DIRECTIONS)

    def along(direction, row, first):
        leaves = jax.tree.leaves(gradient(model, row, first))
        return sum(jnp.vdot(x, v) for x, v in zip(leaves, direction, strict=True))

    keys = jax.random.split(jax.random.key(5), DIRECTIONS)
    expected = [
        [along(random_direction(key, model), *both) for key in keys]
        for both in zip(rows, firsts, strict=True)
    ]
    np.testing.assert_allclose(measured, expected, rtol=1e-3, atol=1e-3)

    # Neither padding nor the other answers of a batch change a derivative.
    reverse = Answers(*(part[::-1] for part in answers))
    again = derivatives(model, reverse, pad_id=7)[::-1]
    np.testing.assert_allclose(again, measured, rtol=1e-4, atol=1e-4)
