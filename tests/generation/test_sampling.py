import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.generation.sampling import NEVER, Sampling, filter_logits, sample

BASE = Sampling(
    max_new_tokens=8,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    min_new_tokens=0,
    stop_ids=(3,),
    pad_id=0,
    num_tokens=6,
)
LOGITS = jnp.log(jnp.array([[0.4, 0.3, 0.15, 0.1, 0.04, 0.01]]))
YES = jnp.array(True)


def kept(logits, **changes) -> list[int]:
    filtered = filter_logits(logits, dataclasses.replace(BASE, **changes))
    return np.flatnonzero(np.asarray(filtered[0]) > NEVER).tolist()


def draw(logits, count=20_000, allow_stop=YES, **changes):
    rows = jnp.broadcast_to(logits, (count, logits.shape[-1]))
    keys = jax.random.split(jax.random.key(0), count)
    return sample(rows, keys, dataclasses.replace(BASE, **changes), allow_stop)


def test_nothing_is_filtered_by_default():
    assert kept(LOGITS) == [0, 1, 2, 3, 4, 5]


def test_top_k_keeps_the_k_likeliest():
    assert kept(LOGITS, top_k=2) == [0, 1]


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [(0.3, [0]), (0.41, [0, 1]), (0.6999, [0, 1]), (0.96, [0, 1, 2, 3, 4])],
)  # cumulative: 0.4, 0.7, 0.85, 0.95, 0.99, 1
def test_top_p_keeps_the_smallest_set_that_reaches_p(top_p, expected):
    assert kept(LOGITS, top_p=top_p) == expected


def test_top_p_applies_to_what_top_k_left():
    # Among the two likeliest, renormalised to 4/7 and 3/7, the first reaches 0.5.
    assert kept(LOGITS, top_k=2, top_p=0.5) == [0]


def test_samples_follow_the_distribution():
    tokens = np.asarray(draw(LOGITS).tokens)
    share = np.bincount(tokens, minlength=6) / len(tokens)
    expected = np.exp(np.asarray(LOGITS[0], np.float64))
    error = 4 * np.sqrt(expected * (1 - expected) / len(tokens))
    assert (np.abs(share - expected) < error).all()


def test_temperature_sharpens_and_logprobs_are_of_the_sampled_distribution():
    out = draw(LOGITS, temperature=0.5)
    weights = np.exp(2 * np.asarray(LOGITS[0], np.float64))
    expected = np.log(weights / weights.sum())
    tokens = np.asarray(out.tokens)
    np.testing.assert_allclose(out.logprobs, expected[tokens], atol=1e-5)
    np.testing.assert_allclose(
        out.model_logprobs, np.asarray(LOGITS[0])[tokens], atol=1e-5
    )
    share = np.bincount(tokens, minlength=6) / len(tokens)
    np.testing.assert_allclose(share, np.exp(expected), atol=0.02)


def test_a_token_that_was_filtered_out_is_never_drawn():
    assert set(np.asarray(draw(LOGITS, top_k=3).tokens)) == {0, 1, 2}


def test_greedy_is_top_1():
    logits = jax.random.normal(jax.random.key(1), (1, 6))
    greedy = draw(logits, count=3, temperature=0.0)
    top_1 = draw(logits, count=3, top_k=1)
    assert (greedy.tokens == top_1.tokens).all()
    assert (greedy.tokens == logits.argmax()).all()


def test_stop_tokens_wait_for_the_minimum_length():
    logits = jnp.zeros((1, 6)).at[0, 3].set(20.0)
    assert (draw(logits, count=50).tokens == 3).all()
    banned = draw(logits, count=500, allow_stop=jnp.array(False))
    assert 3 not in np.asarray(banned.tokens)
    # The sampled distribution is over the five others; the plain model's is not.
    np.testing.assert_allclose(banned.logprobs, np.log(1 / 5), atol=1e-5)
    assert (banned.model_logprobs < -19).all()


def test_padding_of_the_vocabulary_is_never_drawn():
    logits = jnp.concatenate([LOGITS, jnp.full((1, 4), 50.0)], axis=1)
    out = draw(logits, count=500)
    assert out.tokens.max() < 6
    np.testing.assert_allclose(
        out.model_logprobs, np.asarray(LOGITS[0])[np.asarray(out.tokens)], atol=1e-5
    )


def test_a_row_draws_with_its_own_key():
    rows = jax.random.normal(jax.random.key(2), (4, 6))
    keys = jax.random.split(jax.random.key(3), 4)
    together = sample(rows, keys, BASE, YES)
    order = jnp.array([2, 0, 3, 1])
    shuffled = sample(rows[order], keys[order], BASE, YES)
    assert (shuffled.tokens == together.tokens[order]).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"temperature": -1.0}, "temperature=-1.0 must be 0"),
        ({"top_p": 0.0}, "top_p=0.0 must be above 0"),
        ({"top_p": 1.5}, "top_p=1.5 must be above 0"),
        ({"top_k": 7}, "top_k=7 must be 0"),
        ({"min_new_tokens": 9}, "min_new_tokens=9 must lie in"),
        ({"stop_ids": (6,)}, r"ids \[6\] are outside"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(BASE, **changes)
