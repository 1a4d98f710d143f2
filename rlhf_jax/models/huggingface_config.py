"""Reading and writing of the config.json of published checkpoints.

`model_type` "chatglm" is ChatGLM-6B (v1) if `inner_hidden_size` is present, otherwise
the remote code of ChatGLM2, ChatGLM3 and GLM-4; "glm" is the latter architecture in
transformers; "glm4" is GLM-4-0414.
"""

import dataclasses
import math
from typing import Any

from rlhf_jax.models.config import ChatGLMConfig

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


def read(fields: dict[str, Any], *, dtype, param_dtype) -> tuple[ChatGLMConfig, str]:
    """Return our config and the naming of the tensors (see `huggingface_names`).

    Raises:
        ValueError: an unknown model type, a missing key or an unsupported setting.
    """
    kind = fields.get("model_type")
    if kind == "chatglm":
        naming = "v1" if "inner_hidden_size" in fields else "remote"
    elif kind in ("glm", "glm4"):
        naming = "native"
    else:
        raise ValueError(f"model_type {kind!r} is not one of 'chatglm', 'glm', 'glm4'.")
    try:
        config = _READERS[naming](fields)
    except KeyError as error:
        raise ValueError(f"config.json of a {kind!r} model has no {error}.") from None
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"config.json of a {kind!r} model: {error}") from None
    return dataclasses.replace(config, dtype=dtype, param_dtype=param_dtype), naming


def write(config: ChatGLMConfig, naming: str) -> dict[str, Any]:
    """Return the fields of config.json, spelled so that all versions of transformers
    read them."""
    return _WRITERS[naming](config) | {"torch_dtype": config.param_dtype}


def namings(config: ChatGLMConfig) -> tuple[str, ...]:
    """Return the namings that can hold a model, the preferred one first."""
    if config.rotary == "two_axes":
        return ("v1",)
    if config.residual == "sandwich" or config.rotary_fraction != 0.5:
        return ("native",)
    if config.position_divisor != 1.0:
        return ("remote",)
    return ("native", "remote")


def _require(fields, expected):
    for key, value in expected.items():
        given = fields.get(key, value)
        if given != value:
            raise ValueError(f"{key}={given!r} is not supported.")


def _rope(fields):
    """Return the settings of rotary positions, which are top-level fields or, in newer
    files, fields of rope_parameters or, in older files, of rope_scaling.

    Raises:
        ValueError: a setting is not supported, or two contradict each other.
    """
    rope = {}
    for place in (None, "rope_parameters", "rope_scaling"):
        settings = fields if place is None else fields.get(place) or {}
        if not isinstance(settings, dict):
            raise ValueError(f"{place}={settings!r} is not an object.")
        for key, value in settings.items():
            if value is None:
                continue
            if key in ("rope_theta", "partial_rotary_factor"):
                if rope.setdefault(key, value) != value:
                    raise ValueError(f"{key} is both {rope[key]!r} and {value!r}.")
            elif place and (key not in ("type", "rope_type") or value != "default"):
                raise ValueError(f"{place}: {key}={value!r} is not supported.")
            elif key == "rope_type" and value != "default":
                raise ValueError(f"{key}={value!r} is not supported.")
    return rope


def _check_remote(c):
    """Raise ValueError for keys that only transformers reads, unless they ask for what
    the code published with these models does."""
    _require(c, {"quantization_config": None, "quantization_bit": 0})
    for key, value in _rope(c).items():
        raise ValueError(f"{key}={value!r} is not supported.")


def _read_v1(c):
    _check_remote(c)
    _require(c, {"position_encoding_2d": True})
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


def _read_remote(c):
    _check_remote(c)
    _require(c, _REMOTE_FIXED)
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


def _read_native(c):
    _require(c, {"hidden_act": "silu", "quantization_config": None})
    rope = _rope(c)  # the defaults below are those of transformers
    head_dim = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
    return ChatGLMConfig(
        vocab_size=c["vocab_size"],
        width=c["hidden_size"],
        num_layers=c["num_hidden_layers"],
        num_heads=c["num_attention_heads"],
        num_kv_heads=c["num_key_value_heads"],
        head_dim=head_dim,
        ffn_width=c["intermediate_size"],
        context_length=c["max_position_embeddings"],
        residual="sandwich" if c["model_type"] == "glm4" else "pre",
        norm_eps=c["rms_norm_eps"],
        qkv_bias=c["attention_bias"],
        rotary_fraction=float(rope.get("partial_rotary_factor", 0.5)),
        rotary_base=float(rope.get("rope_theta", 10000.0)),
        tied=c.get("tie_word_embeddings", False),
    )


def _write_v1(c):
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


def _write_remote(c):
    ratio = {}
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


def _write_native(c):
    kind, name = ("glm4", "Glm4") if c.residual == "sandwich" else ("glm", "Glm")
    return {
        "architectures": [f"{name}ForCausalLM"],
        "model_type": kind,
        "vocab_size": c.vocab_size,
        "hidden_size": c.width,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.num_kv_heads,
        "head_dim": c.head_dim,
        "intermediate_size": c.ffn_width,
        "max_position_embeddings": c.context_length,
        "rms_norm_eps": c.norm_eps,
        "attention_bias": c.qkv_bias,
        "hidden_act": "silu",
        "partial_rotary_factor": c.rotary_fraction,
        "rope_theta": c.rotary_base,
        "tie_word_embeddings": c.tied,
        # Without this key transformers uses GLM-4's id, which a smaller vocabulary
        # lacks.
        "pad_token_id": None,
    }


_READERS = {"v1": _read_v1, "remote": _read_remote, "native": _read_native}
_WRITERS = {"v1": _write_v1, "remote": _write_remote, "native": _write_native}
