import dataclasses
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.generation.sampling import (
    NEVER,
    Sampling,
    filter_logits,
    sample,
    sampling_with,
)

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


def test_a_probability_that_is_just_reached_takes_no_further_token():
    logits = -jnp.log(jnp.array([[2.0, 4.0, 8.0, 8.0]]))  # exact in float32
    assert kept(logits, top_p=0.5) == [0]
    assert kept(logits, top_p=0.75) == [0, 1]


def test_large_logits_do_not_overflow():
    small, large = draw(LOGITS, count=100), draw(LOGITS + 80, count=100)
    np.testing.assert_array_equal(large.tokens, small.tokens)


def test_it_is_a_static_argument_of_a_compiled_function():
    assert hash(dataclasses.replace(BASE)) == hash(BASE)


def test_top_p_applies_to_what_top_k_left():
    # Among the two likeliest, renormalised to 4/7 and 3/7, the first reaches 0.5.
    assert kept(LOGITS, top_k=2, top_p=0.5) == [0]


@pytest.mark.parametrize("size", [1, 5, 300])
@pytest.mark.parametrize("top_p", [1e-6, 0.1, 0.5, 0.9, 0.99])
def test_top_p_keeps_what_sorting_and_adding_up_keeps(size, top_p):
    """Logits of either sign, tied, far apart, and excluded before."""
    rng = np.random.default_rng(size)
    logits = 4 * rng.standard_normal((20, size)).astype(np.float32)
    logits[::2] = logits[::2].round()
    logits[1::4, 1:] -= 200
    logits[2::4, 1::2] = NEVER
    sampling = dataclasses.replace(BASE, top_p=top_p, num_tokens=size + 6)
    found = np.asarray(filter_logits(jnp.asarray(logits), sampling)) > NEVER
    for row, is_kept in zip(logits.astype(np.float64), found, strict=True):
        order = np.argsort(-row)
        masses = np.exp(row[order] - row.max())
        before = np.cumsum(masses) - masses
        least = row[order][before < top_p * masses.sum()].min()
        assert (is_kept == (row >= least)).all()


@pytest.mark.parametrize(
    "changes", [{"top_k": 50}, {"top_p": 0.9}, {"top_k": 50, "top_p": 0.9}]
)
def test_a_vocabulary_is_never_sorted(changes):
    """It would take longer than the model's step."""
    sampling = dataclasses.replace(BASE, num_tokens=8192, **changes)
    logits = jax.ShapeDtypeStruct((4, 8192), jnp.float32)
    # The CPU's compiler that users get, not the quick one of these tests. A GPU's sorts
    # for the largest of many.
    options = {"xla_backend_optimization_level": 3}
    with jax.default_device(jax.devices("cpu")[0]):
        program = jax.jit(lambda x: filter_logits(x, sampling)).lower(logits)
    text = program.compile(options).as_text()
    assert not re.search(r"\[4,8192\]\S* sort\(", text)
    assert ("TopK" in text) == ("top_k" in changes)


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


def test_the_least_and_the_most_of_every_setting_are_allowed():
    dataclasses.replace(BASE, max_new_tokens=1, min_new_tokens=1, top_k=6, top_p=1.0)
    dataclasses.replace(BASE, stop_ids=(0, 5), temperature=0.0, min_new_tokens=0)


def test_a_tokenizer_gives_the_ids_and_nothing_is_filtered_unless_said():
    tokenizer = SimpleNamespace(stop_ids=(3,), pad_id=0, vocab_size=6)
    assert sampling_with(tokenizer, max_new_tokens=8, temperature=1.0) == BASE


@pytest.fixture
def numbers(monkeypatch):
    """1000 keys whose numbers are 0, 0.001, ... in the place of random ones."""
    evenly = np.arange(1000, dtype=np.float32) / 1000

    def uniform(key):
        return jnp.asarray(evenly)[jax.random.key_data(key)[1]]

    monkeypatch.setattr(jax.random, "uniform", uniform)
    data = np.stack([np.zeros(1000), np.arange(1000)], 1).astype(np.uint32)
    return evenly, jax.random.wrap_key_data(jnp.asarray(data))


def test_a_draw_inverts_the_cumulative_distribution_of_a_large_vocabulary(numbers):
    evenly, keys = numbers
    logits = np.random.default_rng(0).normal(size=300).astype(np.float32)
    sampling = dataclasses.replace(BASE, num_tokens=300)
    rows = jnp.broadcast_to(logits, (1000, 300))
    tokens = np.asarray(sample(rows, keys, sampling, YES).tokens)
    weights = np.exp(logits.astype(np.float64))
    expected = np.searchsorted(np.cumsum(weights) / weights.sum(), evenly, "right")
    assert set(expected // 128) == {0, 1, 2}  # blocks
    off = np.abs(tokens - expected)
    assert off.max() <= 1  # by rounding
    assert (off > 0).mean() < 0.01


def test_the_ends_of_the_unit_interval_draw_no_token_that_was_filtered_out(monkeypatch):
    logits = jnp.log(jnp.array([[0.1, 0.4, 0.3, 0.1, 0.05, 0.05]]))
    for number, expected in ((0.0, 1), (1.0, 2)):  # 1 by rounding
        monkeypatch.setattr(jax.random, "uniform", lambda _, x=number: jnp.float32(x))
        assert (draw(logits, count=1, top_k=2).tokens == expected).all()


@pytest.mark.parametrize("top_k", [0, 3])
@pytest.mark.parametrize("top_p", [1e-300, 1e-40, 1e-12, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [5e-324, 1e-45, 1e-38, 2e-38, 1e-30, 1e-6])
def test_a_tiny_temperature_is_greedy(temperature, top_k, top_p):
    logits = 50 * LOGITS.at[0, 3].set(0.5)  # the stop token is the likeliest
    for allow_stop, best in ((True, 3), (False, 0)):
        out = draw(
            logits,
            count=20,
            allow_stop=jnp.array(allow_stop),
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
        )
        assert (out.tokens == best).all()
        np.testing.assert_allclose(out.logprobs, 0.0, atol=1e-6)
        assert np.isfinite(out.model_logprobs).all()


@pytest.mark.parametrize("temperature", [1e3, 1e30, 1e300])
def test_a_huge_temperature_knows_no_favourite_and_still_no_forbidden_token(
    temperature,
):
    out = draw(LOGITS, 600, jnp.array(False), temperature=temperature)
    assert set(np.asarray(out.tokens)) == {0, 1, 2, 4, 5}
    np.testing.assert_allclose(out.logprobs, -np.log(5), atol=0.01)


@pytest.mark.parametrize("temperature", [-1e-9, float("nan"), float("inf")])
def test_a_temperature_that_is_none_is_refused(temperature):
    with pytest.raises(ValueError, match=r"must be 0 \(greedy\) or positive"):
        dataclasses.replace(BASE, temperature=temperature)


@pytest.mark.parametrize("top_p", [1e-300, 1e-40, 1e-12])
@pytest.mark.parametrize("top_k", [0, 2])
def test_a_tiny_top_p_keeps_the_likeliest(top_k, top_p):
    assert kept(LOGITS, top_k=top_k, top_p=top_p) == [0]


@pytest.mark.parametrize("zeros", [[0.0, -0.0], [-0.0, 0.0]])
@pytest.mark.parametrize("changes", [{"top_p": 0.6}, {"top_p": 0.6, "top_k": 2}])
def test_zeros_of_either_sign_are_tied(zeros, changes):
    assert kept(jnp.array([[*zeros, -9.0, -9.0]]), **changes) == [0, 1]


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_a_response_that_nothing_ends(temperature):
    out = draw(LOGITS, 50, jnp.array(False), stop_ids=(), temperature=temperature)
    expected = draw(LOGITS, 50, temperature=temperature)
    np.testing.assert_array_equal(out.tokens, expected.tokens)
