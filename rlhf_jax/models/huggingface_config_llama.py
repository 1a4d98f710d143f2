"""config.json of "llama", "mistral", "qwen2" and "qwen3"."""

import dataclasses
import math
from typing import Any

from rlhf_jax.models.config import ChatGLMConfig
from rlhf_jax.models.huggingface_settings import (
    NATIVE_FIXED,
    complete,
    native_sizes,
    read_native_sizes,
    require,
    rope_settings,
    without_null,
)
from rlhf_jax.models.rope_scaling import RopeScaling

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def read_llama(c: dict[str, Any]) -> ChatGLMConfig:
    """Return our config of a Llama-like model."""
    kind = c["model_type"]
    given, fixed = without_null(c), dict(NATIVE_FIXED)
    fixed["use_qk_norm"] = kind == "qwen3"
    if kind != "llama":
        fixed["mlp_bias"] = False
    if kind in ("mistral", "qwen2"):  # no key names the three biases of qwen2
        fixed["attention_bias"] = kind == "qwen2"
    require(given, fixed)
    attention_bias = given.get("attention_bias", kind == "qwen2")
    rope = rope_settings(c, scaled=True)
    require(rope, {"partial_rotary_factor": 1.0})
    heads, head_dim = c["num_attention_heads"], c.get("head_dim")
    if head_dim is None:  # the defaults here are those of transformers
        has_default = kind == "qwen3" and "head_dim" not in c
        head_dim = 128 if has_default else c["hidden_size"] // heads
    is_linear = rope["rope_type"] == "linear"
    base = rope.get("rope_theta", 10000.0)
    return ChatGLMConfig(
        **read_native_sizes(c),
        num_kv_heads=given.get("num_key_value_heads", heads),
        head_dim=head_dim,
        family=kind,
        norm_eps=given.get("rms_norm_eps", 1e-6),
        qkv_bias=attention_bias,
        output_bias=attention_bias and kind != "qwen2",
        mlp_bias=given.get("mlp_bias", False),
        qk_norm=kind == "qwen3",
        window=_window(c),
        rotary_fraction=1.0,
        rotary_base=base,
        position_divisor=rope["factor"] if is_linear else 1.0,
        rope_scaling=_scaling(c, rope, base),
        tied=c.get("tie_word_embeddings", False),
    )


def _scaling(
    c: dict[str, Any], rope: dict[str, Any], base: float
) -> RopeScaling | None:
    kind = rope["rope_type"]
    if kind not in ("llama3", "yarn"):
        return None
    given = [x.get("original_max_position_embeddings") for x in (c, rope)]
    lengths = {x for x in given if x is not None} or {c["max_position_embeddings"]}
    if len(lengths) > 1:
        raise ValueError(f"original_max_position_embeddings is any of {lengths}.")
    factor = rope["factor"]
    shared = {"kind": kind, "factor": factor, "original_length": lengths.pop()}
    if kind == "llama3":
        slow, fast = rope["low_freq_factor"], rope["high_freq_factor"]
        return RopeScaling(**shared, slow=slow, fast=fast)
    if base <= 1:
        raise ValueError(f"rope_theta={base!r} is too small for yarn.")

    def length(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    scale, of_all = rope.get("mscale"), rope.get("mscale_all_dim")
    attention_factor = rope.get("attention_factor")
    if attention_factor is None:
        attention_factor = length(1.0)
        if scale and of_all:
            attention_factor = length(scale) / length(of_all)
    return RopeScaling(
        **shared,
        slow=rope.get("beta_slow") or 1.0,
        fast=rope.get("beta_fast") or 32.0,
        attention_factor=attention_factor,
        truncate=rope.get("truncate", True),
    )


def _window(c: dict[str, Any]) -> int | None:
    """Return the window of all layers, None where every token is inside.

    Raises:
        ValueError: layers differ, or keys contradict each other.
    """
    kind, types = c["model_type"], c.get("layer_types")
    window = c.get("sliding_window", None if kind == "llama" else 4096)
    is_qwen = kind in ("qwen2", "qwen3")
    if kind != "mistral" and not c.get("use_sliding_window", kind == "llama"):
        window = None
    if window is not None and type(window) is not int:
        raise ValueError(f"sliding_window={window!r} is not a whole number.")
    if types is None:
        first = c.get("max_window_layers", 28) if is_qwen else 0
        first = 0 if window is None else min(first, c["num_hidden_layers"])
        sliding = window is not None and first < c["num_hidden_layers"]
        whole = window is None or first > 0
    else:
        known = ("sliding_attention", "full_attention")
        is_known = isinstance(types, list) and all(x in known for x in types)
        sliding, whole = (is_known and x in types for x in known)
        if not is_known or (sliding and window is None):
            raise ValueError(f"layer_types={types!r} is not supported.")
    if window is None or window >= c["max_position_embeddings"]:
        return None
    if not is_qwen and (whole or c.get("use_sliding_window") is False):
        raise ValueError(f"sliding_window={window!r} contradicts the other keys.")
    if kind == "llama" or (sliding and whole):
        raise ValueError(
            f"sliding_window={window!r}, below max_position_embeddings, is supported "
            "for all layers of 'mistral', 'qwen2' and 'qwen3' alone."
        )
    return window if sliding else None


def write_llama(c: ChatGLMConfig) -> dict[str, Any]:
    """Return the fields of config.json of a Llama-like model."""
    if c.window is not None and c.window >= c.context_length:
        c = dataclasses.replace(c, window=None)
    scaling, divisor = c.rope_scaling, c.position_divisor
    rope = None
    if divisor != 1.0:
        rope = {"rope_type": "linear", "factor": divisor}
    elif scaling is not None:
        rope = {
            "rope_type": scaling.kind,
            "factor": scaling.factor,
            "original_max_position_embeddings": scaling.original_length,
        }
        if scaling.kind == "llama3":
            rope["low_freq_factor"] = scaling.slow
            rope["high_freq_factor"] = scaling.fast
        else:
            rope["beta_slow"], rope["beta_fast"] = scaling.slow, scaling.fast
            rope["attention_factor"] = scaling.attention_factor
            rope["truncate"] = scaling.truncate
    fields = {
        "architectures": [ARCHITECTURES[c.family]],
        "model_type": c.family,
        **native_sizes(c),
        "rope_scaling": rope,
    }
    if c.family in ("llama", "qwen3"):
        fields["attention_bias"] = c.qkv_bias
    if c.family == "llama":
        fields["mlp_bias"] = c.mlp_bias
    else:
        fields["sliding_window"] = c.window
    if c.family in ("qwen2", "qwen3"):
        fields["use_sliding_window"] = c.window is not None
        fields["max_window_layers"] = c.num_layers if c.window is None else 0
    return complete(fields, read_llama(fields), c)
