"""config.json of the first ChatGLM (v1), and of the code published with ChatGLM2,
ChatGLM3 and GLM-4 (remote)."""

import math
from typing import Any

from rlhf_jax.models.config import ChatGLMConfig
from rlhf_jax.models.huggingface_settings import require, rope_settings

# Settings that all published text models share, with the value that an absent key
# means.
_REMOTE_FIXED = {
    "add_bias_linear": False,
    "apply_residual_connection_post_layernorm": False,
    "fp32_residual_connection": False,
    "post_layer_norm": True,
    "rmsnorm": True,
    "original_rope": True,
}


def _check_remote(c: dict[str, Any]) -> None:
    """Raise ValueError for keys that only transformers reads, unless they ask for what
    the code published with these models does."""
    require(c, {"quantization_config": None, "quantization_bit": 0})
    for key, value in rope_settings(c).items():
        if key != "rope_type":
            raise ValueError(f"{key}={value!r} is not supported.")


def read_v1(c: dict[str, Any]) -> ChatGLMConfig:
    """Return our config of ChatGLM-6B."""
    _check_remote(c)
    require(c, {"position_encoding_2d": True})
    if c["vocab_size"] == 150528:
        raise ValueError(
            "This is an early release of ChatGLM-6B with 150528 tokens, whose ids do "
            "not match its tokenizer's later ones; get the one with 130528."
        )
    for key in ("bos_token_id", "gmask_token_id", "mask_token_id"):
        if type(c[key]) is not int or not 0 <= c[key] < c["vocab_size"]:
            raise ValueError(f"{key}={c[key]!r} is not an id below {c['vocab_size']=}.")
    return ChatGLMConfig(
        vocab_size=c["vocab_size"],
        width=c["hidden_size"],
        num_layers=c["num_layers"],
        num_heads=c["num_attention_heads"],
        num_kv_heads=c["num_attention_heads"],
        head_dim=c["hidden_size"] // c["num_attention_heads"],
        ffn_width=c["inner_hidden_size"],
        context_length=c["max_sequence_length"],
        residual="normed",
        # The published block uses 28 whatever the number of layers is.
        residual_scale=math.sqrt(2 * 28),
        norm="layer",
        norm_eps=c["layernorm_epsilon"],
        mlp="gelu",
        linear_bias=True,
        rotary="two_axes",
        tied=c.get("tie_word_embeddings", True),
        start_token=c["bos_token_id"],
        mask_tokens=(c["gmask_token_id"], c["mask_token_id"]),
    )


def read_remote(c: dict[str, Any]) -> ChatGLMConfig:
    """Return our config of ChatGLM2, ChatGLM3 or GLM-4."""
    _check_remote(c)
    require(c, _REMOTE_FIXED)
    heads = c["num_attention_heads"]
    ratio = float(c.get("rope_ratio", 1))
    # The name alone identifies ChatGLM2-6B-32k, which divides positions by the ratio.
    divides = "chatglm2-6b-32k" in c.get("_name_or_path", "").lower()
    return ChatGLMConfig(
        vocab_size=c["padded_vocab_size"],
        width=c["hidden_size"],
        num_layers=c["num_layers"],
        num_heads=heads,
        num_kv_heads=(
            c["multi_query_group_num"] if c.get("multi_query_attention") else heads
        ),
        head_dim=c["kv_channels"],
        ffn_width=c["ffn_hidden_size"],
        context_length=c["seq_length"],
        norm_eps=c["layernorm_epsilon"],
        qkv_bias=c["add_qkv_bias"],
        rotary_base=10000.0 if divides else 10000.0 * ratio,
        position_divisor=ratio if divides else 1.0,
        tied=c.get("tie_word_embeddings", False),
    )


def write_v1(c: ChatGLMConfig) -> dict[str, Any]:
    """Return the fields of config.json for the code of ChatGLM-6B."""
    shape = (c.num_heads * c.head_dim, c.num_kv_heads, c.residual_scale)
    if shape != (c.width, c.num_heads, math.sqrt(2 * 28)):
        raise ValueError("config.json of ChatGLM-6B cannot express this shape.")
    gmask, mask = c.mask_tokens
    return {
        "architectures": ["ChatGLMModel"],
        "model_type": "chatglm",
        "vocab_size": c.vocab_size,
        "hidden_size": c.width,
        "num_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "inner_hidden_size": c.ffn_width,
        "max_sequence_length": c.context_length,
        "layernorm_epsilon": c.norm_eps,
        "position_encoding_2d": True,
        "bos_token_id": c.start_token,
        "gmask_token_id": gmask,
        "mask_token_id": mask,
        "tie_word_embeddings": c.tied,
    }


def write_remote(c: ChatGLMConfig) -> dict[str, Any]:
    """Return the fields of config.json for the code of ChatGLM2, ChatGLM3 or GLM-4."""
    ratio: dict[str, Any] = {}
    if c.position_divisor != 1.0:
        ratio = {"rope_ratio": c.position_divisor}
        ratio["_name_or_path"] = "THUDM/chatglm2-6b-32k"
    elif c.rotary_base != 10000.0:
        ratio = {"rope_ratio": c.rotary_base / 10000.0}
    return _REMOTE_FIXED | {
        "architectures": ["ChatGLMModel"],
        "model_type": "chatglm",
        "padded_vocab_size": c.vocab_size,
        "hidden_size": c.width,
        "num_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "multi_query_attention": True,
        "multi_query_group_num": c.num_kv_heads,
        "kv_channels": c.head_dim,
        "ffn_hidden_size": c.ffn_width,
        "seq_length": c.context_length,
        "layernorm_epsilon": c.norm_eps,
        "add_qkv_bias": c.qkv_bias,
        "tie_word_embeddings": c.tied,
        **ratio,
    }
