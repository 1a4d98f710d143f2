"""Presets: named configs of small models and of all published ones."""

import dataclasses
import math

import jax
from flax import nnx

from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.config import ChatGLMConfig
from rlhf_jax.models.rope_scaling import RopeScaling

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
_MISTRAL_7B = ChatGLMConfig(
    vocab_size=32768,
    width=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    ffn_width=14336,
    context_length=32768,
    family="mistral",
    qkv_bias=False,
    rotary_fraction=1.0,
    rotary_base=1e6,
    dtype="bfloat16",
    scan_layers=True,
    remat="full",
)

_GLM4_5 = ChatGLMConfig(
    vocab_size=151552,
    width=5120,
    num_layers=92,
    num_heads=96,
    num_kv_heads=8,
    head_dim=128,
    ffn_width=12288,
    context_length=131072,
    family="glm4_moe",
    qk_norm=True,
    rotary_base=1e6,
    num_experts=160,
    experts_per_token=8,
    expert_width=1536,
    num_shared_experts=1,
    num_dense_layers=3,
    routed_scale=2.5,
    dtype="bfloat16",
    scan_layers=True,
    remat="full",
)

_GLM4_7_FLASH = dataclasses.replace(
    _GLM4_5,
    vocab_size=154880,
    width=2048,
    num_layers=47,
    num_heads=20,
    num_kv_heads=20,
    head_dim=256,  # 64 of which turn
    ffn_width=10240,
    context_length=202752,
    family="glm4_moe_lite",
    qkv_bias=False,
    qk_norm=False,
    rotary_fraction=0.25,
    num_experts=64,
    experts_per_token=4,
    num_dense_layers=1,
    routed_scale=1.8,
    latent_width=512,
    query_rank=768,
    value_dim=256,
)

_TINY = ChatGLMConfig(
    vocab_size=1024,
    width=128,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    ffn_width=344,
    context_length=512,
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
    "tiny": _TINY,
    # Half and a quarter of its width: what does the size of a reward model bring?
    "tiny_half": dataclasses.replace(
        _TINY, width=64, num_heads=2, num_kv_heads=1, ffn_width=172
    ),
    "tiny_quarter": dataclasses.replace(
        _TINY, width=32, num_heads=1, num_kv_heads=1, ffn_width=86
    ),
    # The same layers with experts, two of which a token passes beside the shared one:
    # as many active parameters as "tiny" has.
    "tiny_moe": dataclasses.replace(
        _TINY,
        family="glm4_moe",
        num_experts=8,
        experts_per_token=2,
        expert_width=112,
        num_shared_experts=1,
        num_dense_layers=1,
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
    "glm_edge_1_5b": dataclasses.replace(
        _GLM4_9B,
        vocab_size=59264,
        width=2048,
        num_layers=28,
        num_heads=16,
        num_kv_heads=4,
        ffn_width=6144,
        norm_eps=1e-5,
        qkv_bias=False,
        rotary_fraction=1.0,
        tied=True,
    ),
    "glm4_5": _GLM4_5,  # and 4.6 and 4.7, whose context is 202,752
    "glm4_5_air": dataclasses.replace(
        _GLM4_5,
        width=4096,
        num_layers=46,
        ffn_width=10944,
        qk_norm=False,
        num_experts=128,
        expert_width=1408,
        num_dense_layers=1,
        routed_scale=1.0,
    ),
    "glm4_7_flash": _GLM4_7_FLASH,
    "llama3_8b": dataclasses.replace(  # Llama 3.1
        _MISTRAL_7B,
        vocab_size=128256,
        context_length=131072,
        family="llama",
        rotary_base=5e5,
        rope_scaling=RopeScaling(
            "llama3", 8.0, original_length=8192, slow=1.0, fast=4.0
        ),
    ),
    "mistral_7b": _MISTRAL_7B,  # version 0.3
    "qwen2_7b": dataclasses.replace(  # Qwen2.5
        _MISTRAL_7B,
        vocab_size=152064,
        width=3584,
        num_layers=28,
        num_heads=28,
        num_kv_heads=4,
        ffn_width=18944,
        family="qwen2",
        norm_eps=1e-6,
        qkv_bias=True,
    ),
    "qwen3_8b": dataclasses.replace(
        _MISTRAL_7B,
        vocab_size=151936,
        num_layers=36,
        ffn_width=12288,
        context_length=40960,
        family="qwen3",
        norm_eps=1e-6,
        qk_norm=True,
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
