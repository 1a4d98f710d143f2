import jax.numpy as jnp
import numpy as np

from rlhf_jax.losses.sft import sft_loss


def test_loss_is_the_negative_logprob_of_each_token():
    # p = 1/2 and 1/4: -log p = 0.6931 and 1.3863.
    loss = sft_loss(logprobs=jnp.log(jnp.array([[0.5, 0.25]])))
    np.testing.assert_allclose(loss, [[0.693147, 1.386294]], rtol=1e-6)


def test_loss_is_float32_whatever_comes_in():
    assert sft_loss(logprobs=jnp.zeros(3, jnp.bfloat16)).dtype == jnp.float32
