"""Grouped attention against jax's own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models.attention import (
    attend,
    block_attend,
    causal,
    cudnn_attend,
    visible,
)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_it_equals_the_library_forward_and_backward(kv_heads):
    keys = jax.random.split(jax.random.key(0), 4)
    queries = jax.random.normal(keys[0], (2, 5, 4, 8))
    k, v = (jax.random.normal(key, (2, 7, kv_heads, 8)) for key in keys[1:3])
    seen = jax.random.bernoulli(keys[3], 0.5, (2, 5, 7)).at[:, :, 0].set(True)

    @jax.jit
    @jax.value_and_grad
    def ours(arrays):
        q, k, v = arrays
        out = attend(q, k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3), seen)
        return (out**2).sum()

    @jax.jit
    @jax.value_and_grad
    def theirs(arrays):
        q, k, v = arrays
        k, v = k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)
        return (cudnn_attend(q, k, v, seen, implementation="xla") ** 2).sum()

    for a, b in zip(
        jax.tree.leaves(ours((queries, k, v))),
        jax.tree.leaves(theirs((queries, k, v))),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_a_query_that_sees_nothing_gets_the_mean_of_the_values():
    """Any finite answer would do: it only must not be NaN."""
    ones = jnp.ones((1, 1, 2, 4))
    values = jnp.arange(12.0).reshape(1, 1, 3, 4).repeat(2, 1)
    keys = jnp.ones((1, 2, 4, 3))
    out = attend(ones, keys, values, jnp.zeros((1, 1, 3), bool))
    np.testing.assert_allclose(out[0, 0, 0], [4, 5, 6, 7], rtol=1e-6)


@pytest.mark.parametrize("segments", [None, [0] * 70 + [1] * 50 + [2] * 50])
def test_blocks_that_read_only_what_they_may_see_change_nothing(segments):
    """Three blocks of 64, the last cut short; one straddles two responses."""
    length = 170
    segments = None if segments is None else np.array(segments)
    possible = causal(length, segments)
    keys = jax.random.split(jax.random.key(0), 4)
    arrays = (
        jax.random.normal(keys[0], (2, length, 4, 8)),
        jax.random.normal(keys[1], (2, 2, 8, length)),
        jax.random.normal(keys[2], (2, 2, length, 8)),
    )
    mask = jnp.ones((2, length), bool).at[0, :9].set(False).at[1, -3:].set(False)
    seen = visible(
        mask,
        query_slots=jnp.arange(length),
        segments=None if segments is None else jnp.broadcast_to(segments, mask.shape),
    )
    real = mask[:, :, None, None]

    @functools.partial(jax.jit, static_argnums=1)
    @jax.value_and_grad
    def loss(arrays, attend):
        return jnp.sum(jnp.where(real, attend(*arrays, seen), 0.0) ** 2)

    blocks = functools.partial(block_attend, possible=possible)
    expected, got = loss(arrays, attend), loss(arrays, blocks)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_a_block_reads_no_key_that_it_cannot_see():
    """A key that none may see can be NaN: nothing reads it."""
    segments = np.array([0] * 64 + [1] * 64 + [2] * 64)
    queries = jnp.ones((1, 192, 2, 4))
    keys, values = jnp.ones((1, 1, 4, 192)), jnp.ones((1, 1, 192, 4))
    keys = keys.at[..., 64:128].set(jnp.nan)
    possible = causal(192, segments)
    out = block_attend(
        queries, keys, values, jnp.asarray(possible)[None], possible=possible
    )
    assert np.isfinite(out[:, 128:]).all() and np.isnan(out[:, 64:128]).all()
