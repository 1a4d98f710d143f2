"""Grouped attention against jax's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models.attention import attend, cudnn_attend


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
