from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.losses import masked
from rlhf_jax.losses.aggregation import AGGREGATIONS, aggregate

MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]], bool)
X = np.random.default_rng(0).normal(size=MASK.shape).astype(np.float32)
LENGTH = 6


def mean_of(x, mask, aggregation, length=LENGTH):
    out = aggregate(
        jnp.array(x), jnp.array(mask), aggregation=aggregation, length=length
    )
    return float(out.total) / float(out.count)


def slow_mean(x, mask, aggregation):
    rows = [
        row[real].astype(np.float64)
        for row, real in zip(x, mask, strict=True)
        if real.any()
    ]
    if aggregation == "response":
        return np.mean([row.mean() for row in rows])
    if aggregation == "token":
        return np.concatenate(rows).mean()
    return sum(row.sum() for row in rows) / (LENGTH * len(rows))


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_the_mean_equals_the_slow_reference(aggregation):
    expected = slow_mean(X, MASK, aggregation)
    assert mean_of(X, MASK, aggregation) == pytest.approx(expected, rel=1e-5)


def test_the_means_of_hand_written_numbers():
    # Rows (1, 2, 3) and (6): 12 / 4; (2 + 6) / 2; 12 / (2 * 5).
    x = np.array([[1, 2, 3], [6, 9, 9]], np.float32)
    mask = np.array([[1, 1, 1], [1, 0, 0]], bool)
    assert mean_of(x, mask, "token") == 3.0
    assert mean_of(x, mask, "response") == 4.0
    assert mean_of(x, mask, "constant", 5) == pytest.approx(1.2)


@pytest.mark.parametrize("aggregation", ["response", "constant"])
def test_responses_of_the_constant_length_have_the_mean_over_tokens(aggregation):
    full = np.ones(MASK.shape, bool)
    expected = mean_of(X, full, "token")
    found = mean_of(X, full, aggregation, MASK.shape[1])
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_padding_and_order_change_no_mean_and_garbage_is_masked(aggregation):
    dirty = np.where(MASK, X, np.nan)[::-1]
    wide = ((1, 2), (0, 3))
    found = mean_of(np.pad(dirty, wide), np.pad(MASK[::-1], wide), aggregation)
    assert found == pytest.approx(mean_of(X, MASK, aggregation), rel=1e-5)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_totals_and_counts_of_parts_add_up(aggregation):
    add = partial(aggregate, aggregation=aggregation, length=LENGTH)
    whole = add(jnp.array(X), jnp.array(MASK))
    parts = [add(jnp.array(X[i : i + 2]), jnp.array(MASK[i : i + 2])) for i in (0, 2)]
    np.testing.assert_allclose(
        np.add(parts[0], parts[1]), np.array(whole), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_nothing_counts_for_nothing(aggregation):
    out = aggregate(
        jnp.array(X), jnp.zeros(MASK.shape, bool), aggregation=aggregation, length=6
    )
    assert (float(out.total), float(out.count)) == (0.0, 0.0)


def test_by_token_is_the_masked_mean():
    expected = masked.mean(jnp.array(X), jnp.array(MASK))
    assert mean_of(X, MASK, "token") == pytest.approx(float(expected))


def test_an_unknown_mean_is_refused():
    with pytest.raises(ValueError, match="aggregation='row' must be one of token"):
        mean_of(X, MASK, "row")
