"""The device that jax prefers computes what the CPU computes, in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.families import FAMILIES, random_model, random_tokens


@jax.jit
def logits_and_gradient(model, tokens, mask):
    """Logits, zero at padding, and the gradient of their mean square."""

    def loss(model):
        logits = jnp.where(mask[..., None], model(tokens, mask), 0.0)
        return jnp.square(logits).mean(), logits

    gradient, logits = jax.grad(loss, has_aux=True)(model)
    return logits, gradient


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["v1", "v2", "glm4", "qwen3"])
def test_logits_and_gradients_are_those_of_the_cpu(family):
    """Padding on the left in one row, on the right in another. TF32 would be off by a
    thousandth."""
    model = random_model(FAMILIES[family])
    tokens = jnp.asarray(random_tokens(model.config, (3, 12), prompt=6))
    places = jnp.arange(12)[None]
    mask = (places >= jnp.array([[0], [4], [0]])) & (
        places < jnp.array([[12], [12], [9]])
    )
    arguments = model, tokens, mask
    here = logits_and_gradient(*arguments)
    there = logits_and_gradient(*jax.device_put(arguments, jax.devices("cpu")[-1]))
    assert jax.tree.leaves(there)[0].devices() == {jax.devices("cpu")[-1]}
    for got, expected in zip(*map(jax.tree.leaves, (here, there)), strict=True):
        error = np.linalg.norm(np.asarray(got) - np.asarray(expected))
        assert error <= 1e-4 * np.linalg.norm(expected) + 1e-6
