"""Small models of every family, with random weights."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.config import ChatGLMConfig
from rlhf_jax.models.rope_scaling import RopeScaling

START, GMASK, MASK = 60, 61, 62
SMALL = {
    "vocab_size": 64,
    "width": 32,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
    "ffn_width": 48,
    "context_length": 64,
}
FAMILIES = {
    "v1": ChatGLMConfig(
        **SMALL | {"num_kv_heads": 4, "head_dim": 8},
        residual="normed",
        residual_scale=math.sqrt(56),
        norm="layer",
        mlp="gelu",
        linear_bias=True,
        rotary="two_axes",
        tied=True,
        start_token=START,
        mask_tokens=(GMASK, MASK),
    ),
    "v2": ChatGLMConfig(**SMALL),
    "glm_edge": ChatGLMConfig(**SMALL, rotary_fraction=1.0, qkv_bias=False, tied=True),
    "glm4": ChatGLMConfig(**SMALL, residual="sandwich"),
    "llama": ChatGLMConfig(
        **SMALL,
        family="llama",
        output_bias=True,
        mlp_bias=True,
        rotary_fraction=1.0,
        rope_scaling=RopeScaling("llama3", 8.0, original_length=16, slow=1.0, fast=4.0),
    ),
    "mistral": ChatGLMConfig(
        **SMALL,
        family="mistral",
        qkv_bias=False,
        rotary_fraction=1.0,
        position_divisor=2.0,
        window=5,
    ),
    "qwen2": ChatGLMConfig(
        **SMALL, family="qwen2", rotary_fraction=1.0, rotary_base=1e6, tied=True
    ),
    "qwen3": ChatGLMConfig(
        **SMALL,
        family="qwen3",
        qkv_bias=False,
        qk_norm=True,
        rotary_fraction=1.0,
        rope_scaling=RopeScaling(
            "yarn", 4.0, original_length=16, slow=1.0, fast=32.0, attention_factor=1.25
        ),
    ),
    "glm4_moe": ChatGLMConfig(
        **SMALL,
        family="glm4_moe",
        qk_norm=True,
        num_experts=6,
        experts_per_token=2,
        expert_width=20,
        num_shared_experts=1,
        num_dense_layers=1,
        routed_scale=2.5,
    ),
    # A head of 10 unturned dims and 6 turned ones; a value of 12.
    "glm4_moe_lite": ChatGLMConfig(
        **SMALL | {"num_kv_heads": 4},
        family="glm4_moe_lite",
        qkv_bias=False,
        rotary_fraction=6 / 16,
        num_experts=6,
        experts_per_token=2,
        expert_width=20,
        num_shared_experts=1,
        num_dense_layers=1,
        routed_scale=1.8,
        latent_width=24,
        query_rank=20,
        value_dim=12,
    ),
}


def random_model(config: ChatGLMConfig, seed: int = 0) -> ChatGLM:
    """Weights of unit gain; random biases and scales, so that none can be left out."""
    rng = np.random.default_rng(seed)

    def draw(path, x):
        noise = rng.normal(size=x.shape)
        name = jax.tree_util.keystr(path)
        if "scale" in name:
            noise = 1 + 0.2 * noise
        else:
            noise = noise * (0.5 if "embedding" in name else 0.15)
        return jnp.asarray(noise, x.dtype)

    shapes = jax.eval_shape(lambda: ChatGLM(config, rngs=nnx.Rngs(0)))
    return jax.tree_util.tree_map_with_path(draw, shapes)


def with_fields(model: ChatGLM, **changes) -> ChatGLM:
    """The same weights under another config."""
    config = dataclasses.replace(model.config, **changes)
    other = jax.eval_shape(lambda: ChatGLM(config, rngs=nnx.Rngs(0)))
    return jax.tree.unflatten(jax.tree.structure(other), jax.tree.leaves(model))


def random_tokens(config: ChatGLMConfig, shape, seed: int = 0, prompt: int = 0):
    """Token ids; for ChatGLM-6B, row b's context ends before place `prompt + b`."""
    tokens = np.random.default_rng(seed).integers(0, START, shape)
    if config.has_prefix:
        for b in range(shape[0]):
            tokens[b, prompt + b - 1 : prompt + b + 1] = GMASK, START
    return tokens.astype(np.int32)
