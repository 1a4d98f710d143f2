"""Scores and values of responses that share their prompt."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rlhf_jax.generation import scoring
from rlhf_jax.models.heads import ScoreModel


@jax.jit
def forward(model, tokens):
    return model(tokens)


def score_arguments():
    rng = np.random.default_rng(3)
    tokens = jnp.asarray(rng.integers(3, 30, (2, 6)), jnp.int32)
    mask = jnp.array([[False] * 2 + [True] * 4, [True] * 6])
    responses = jnp.asarray(rng.integers(3, 30, (2, 2, 5)), jnp.int32)
    lengths = jnp.array([[5, 2], [1, 4]])
    return tokens, mask, responses, jnp.arange(5)[None, None] < lengths[..., None]


def test_scores_of_a_shared_prompt_equal_separate_passes(model):
    score_model = ScoreModel(model, rngs=nnx.Rngs(1))
    tokens, mask, responses, response_mask = score_arguments()
    shared = scoring.response_scores(
        score_model, tokens, mask, responses, response_mask
    )
    for row in range(2):
        for k in range(2):
            prompt = np.asarray(tokens[row])[np.asarray(mask[row])]
            length = int(response_mask[row, k].sum())
            text = np.concatenate([prompt, np.asarray(responses[row, k])])
            # Later tokens change nothing, and all rows have one shape.
            later = np.pad(text, (0, 11 - len(text)))
            alone = forward(score_model, later[None])[0, len(prompt) + length - 1]
            np.testing.assert_allclose(shared[row, k], alone, atol=1e-5)


def test_an_empty_response_has_the_score_of_its_prompts_end(model):
    score_model = ScoreModel(model, rngs=nnx.Rngs(1))
    tokens, mask, responses, response_mask = score_arguments()
    nothing = response_mask.at[:, 0].set(False)
    empty = scoring.response_scores(score_model, tokens, mask, responses, nothing)
    whole = scoring.response_scores(score_model, tokens, mask, responses, response_mask)
    np.testing.assert_allclose(empty[:, 1], whole[:, 1], atol=1e-5)
    ends = forward(score_model, tokens[1:])[0, -1]  # a prompt without padding
    np.testing.assert_allclose(empty[1, 0], ends, atol=1e-5)
    assert abs(ends - whole[1, 0]) > 1e-3


def test_a_value_is_of_the_state_before_its_token(model):
    score_model = ScoreModel(model, rngs=nnx.Rngs(1))
    tokens, mask, responses, response_mask = score_arguments()
    values = scoring.response_values(
        score_model, tokens, mask, responses, response_mask
    )
    prompt = np.asarray(tokens[0])[np.asarray(mask[0])]
    text = jnp.asarray(np.concatenate([prompt, np.asarray(responses[0, 0])]))[None]
    alone = forward(score_model, text)[0]
    start = len(prompt)
    np.testing.assert_allclose(values[0, 0], alone[start - 1 : start + 4], atol=1e-5)
