import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rlhf_jax.models.heads import ScalarHead, ScoreModel, last_real_token
from tests.models.families import FAMILIES, random_model, random_tokens


def score_model():
    return ScoreModel(random_model(FAMILIES["v2"]), rngs=nnx.Rngs(0))


def test_scores_are_the_head_of_the_hidden_states_less_the_offset():
    model = score_model()
    tokens = jnp.asarray(random_tokens(model.config, (2, 6)))
    before = jax.jit(lambda m, t: m(t))(model, tokens)
    hidden = jax.jit(lambda m, t: m.backbone.hidden(t))(model, tokens)
    np.testing.assert_allclose(before, model.head(hidden), atol=1e-5)
    model.offset[...] = jnp.float32(1.5)
    after = jax.jit(lambda m, t: m(t))(model, tokens)
    np.testing.assert_allclose(before - after, 1.5, rtol=1e-5)


def test_the_backbone_comes_without_its_output_matrix():
    model = random_model(FAMILIES["v2"])
    scores = ScoreModel(model, rngs=nnx.Rngs(0))
    assert scores.backbone.head is None
    tokens = jnp.asarray(random_tokens(model.config, (2, 6)))
    hidden = jax.jit(lambda m, t: m.hidden(t))
    np.testing.assert_array_equal(
        hidden(model, tokens), hidden(scores.backbone, tokens)
    )


def test_no_gradient_reaches_the_offset():
    model = score_model()
    tokens = jnp.asarray(random_tokens(model.config, (2, 6)))
    gradient = jax.jit(jax.grad(lambda m, t: m(t).sum()))(model, tokens)
    assert gradient.offset[...] == 0
    np.testing.assert_allclose(gradient.head.bias[0], tokens.size, rtol=1e-6)


def test_the_head_starts_with_variance_one_over_width_plus_one_and_no_bias():
    head = ScalarHead(10000, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(head.kernel[...].std() * 10001**0.5, 1, atol=0.03)
    np.testing.assert_array_equal(head.bias[...], 0)


def test_the_last_real_token_is_found_on_either_side_of_padding():
    values = jnp.arange(12.0).reshape(3, 4)
    mask = jnp.array([[1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 0, 0]], bool)
    np.testing.assert_array_equal(last_real_token(values, mask), [1, 7, 9])
