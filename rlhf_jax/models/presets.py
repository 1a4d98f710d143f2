"""Presets: named configs of small models and of all published ones."""

import dataclasses
import math

import jax
from flax import nnx

from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.config import ChatGLMConfig

_CHATGLM_6B = ChatGLMConfig(
    vocab_size=130528,
    width=4096,
    num_layers=28,
    num_heads=32,
    num_kv_heads=32,
    head_dim=128,
    ffn_width=16384,
    context_length=2048,
    residual="normed",
    # The published block uses 28 whatever the number of layers is.
    residual_scale=math.sqrt(2 * 28),
    norm="layer",
    mlp="gelu",
    linear_bias=True,
    rotary="two_axes",
    tied=True,
    start_token=130004,
    mask_tokens=(130001, 130000),
    dtype="bfloat16",
    scan_layers=True,
    remat="full",
)
_CHATGLM2_6B = ChatGLMConfig(
    vocab_size=65024,
    width=4096,
    num_layers=28,
    num_heads=32,
    num_kv_heads=2,
    head_dim=128,
    ffn_width=13696,
    context_length=32768,
    dtype="bfloat16",
    scan_layers=True,
    remat="full",
)
_GLM4_9B = dataclasses.replace(
    _CHATGLM2_6B,
    vocab_size=151552,
    num_layers=40,
    context_length=8192,
    norm_eps=1.5625e-7,
)
_GLM4_0414_9B = dataclasses.replace(
    _GLM4_9B, residual="sandwich", norm_eps=1e-5, context_length=32768
)

PRESETS: dict[str, ChatGLMConfig] = {
    # For tests: the model compiles in a second or two.
    "micro": ChatGLMConfig(
        vocab_size=512,
        width=32,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=16,
        ffn_width=48,
        context_length=256,
    ),
    # For a laptop: training takes minutes.
    "tiny": ChatGLMConfig(
        vocab_size=1024,
        width=128,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        ffn_width=344,
        context_length=512,
    ),
    # For timing one code base against another.
    "benchmark": ChatGLMConfig(
        vocab_size=8192,
        width=256,
        num_layers=4,
        num_heads=8,
        num_kv_heads=2,
        head_dim=32,
        ffn_width=688,
        context_length=2048,
    ),
    "chatglm_6b": _CHATGLM_6B,
    "chatglm2_6b": _CHATGLM2_6B,
    "chatglm3_6b": dataclasses.replace(_CHATGLM2_6B, context_length=8192),
    "glm4_9b": _GLM4_9B,
    "glm4_0414_9b": _GLM4_0414_9B,
    "glm4_0414_32b": dataclasses.replace(
        _GLM4_0414_9B,
        width=6144,
        num_layers=61,
        num_heads=48,
        ffn_width=23040,
        qkv_bias=False,
    ),
}


def preset(name: str, **overrides) -> ChatGLMConfig:
    """Return the config of a preset, with some fields changed."""
    if name not in PRESETS:
        raise ValueError(f"No preset {name!r}. Known: {', '.join(sorted(PRESETS))}.")
    return dataclasses.replace(PRESETS[name], **overrides)


def num_parameters(config: ChatGLMConfig) -> int:
    """Count the parameters of a model, from shapes alone."""
    model = jax.eval_shape(lambda: ChatGLM(config, rngs=nnx.Rngs(0)))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model))
