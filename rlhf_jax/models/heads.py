"""Scalar heads: reward models and value models, which score every token."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Shaped

from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.layers import normal


class ScalarHead(nnx.Module):
    """An affine map from hidden states to one number, in float32.

    The initialisation is that of "Learning to summarize from human feedback" (arXiv
    2009.01325): normal with variance 1 / (D + 1).
    """

    def __init__(self, width: int, *, rngs: nnx.Rngs, param_dtype="float32"):
        std = 1 / jnp.sqrt(width + 1)
        kernel = normal(rngs.params(), (width, 1), std, param_dtype)
        self.kernel = nnx.Param(kernel)
        self.bias = nnx.Param(jnp.zeros(1, param_dtype))

    def __call__(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T"]:
        # Scores are compared with each other, and bfloat16 would round scores to 1 in
        # 256.
        hidden = hidden.astype(jnp.float32)
        kernel = self.kernel[...].astype(jnp.float32)
        return (hidden @ kernel)[..., 0] + self.bias[0].astype(jnp.float32)


class Offset(nnx.Variable):
    """A variable that is measured, not trained."""


class ScoreModel(nnx.Module):
    """A reward or value model: score = head(hidden) - offset at every token.

    The backbone has no output matrix, since no score needs one. `offset` is set after
    training, so that scores have mean 0 on reference responses; the offset gets no
    gradient.
    """

    def __init__(self, backbone: ChatGLM, *, rngs: nnx.Rngs):
        self.backbone = without_head(backbone)
        config = backbone.config
        dtype = config.trained_dtype
        self.head = ScalarHead(config.width, rngs=rngs, param_dtype=dtype)
        self.offset = Offset(jnp.float32(0.0))

    @property
    def config(self):
        return self.backbone.config

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        mask: Bool[Array, "B T"] | None = None,
        *,
        segments: Int[Array, "B T"] | Int[np.ndarray, " T"] | None = None,
        examples: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T"]:
        hidden = self.backbone.hidden(
            tokens, mask, segments=segments, examples=examples
        )
        return self.head(hidden) - jax.lax.stop_gradient(self.offset[...])


def without_head(model: ChatGLM) -> ChatGLM:
    """Return the model with its output matrix replaced by the embedding."""
    if model.head is None:
        return model
    config = dataclasses.replace(model.config, tied=True)
    like = jax.eval_shape(lambda: ChatGLM(config, rngs=nnx.Rngs(0)))
    # An own part (models/adapters.py) has None in place of some arrays.
    pairs, _ = jax.tree_util.tree_flatten_with_path(model, is_leaf=lambda x: x is None)
    leaves = dict(pairs)
    return jax.tree_util.tree_map_with_path(lambda path, _: leaves[path], like)


def last_real_token(
    values: Shaped[Array, "B T"], mask: Bool[Array, "B T"]
) -> Shaped[Array, " B"]:
    """Return the value at each row's last real token, with padding on either side."""
    slots = jnp.arange(mask.shape[1])[None]
    last = jnp.where(mask, slots, 0).max(axis=1, keepdims=True)
    return jnp.take_along_axis(values, last, axis=1)[:, 0]
