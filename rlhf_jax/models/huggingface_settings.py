"""Settings of config.json that several families spell alike."""

import dataclasses
import math
from typing import Any

from rlhf_jax.models.config import ChatGLMConfig

# Settings of models of transformers that are not computed, with the value that changes
# nothing, as null does.
NATIVE_FIXED = {
    "hidden_act": "silu",
    "quantization_config": None,
    "pretraining_tp": 1,
    "alibi": False,
    "attention_chunk_size": None,
    "attention_multiplier": 1.0,
    "attention_scale": None,
    "attn_logit_softcapping": None,
    "attn_scale": None,
    "attn_temperature_tuning": False,
    "clip_qkv": None,
    "embedding_multiplier": 1.0,
    "final_logit_softcapping": None,
    "is_causal": True,
    "logit_scale": 1.0,
    "logits_scaling": 1.0,
    "no_rope_layer_interval": None,
    "no_rope_layers": None,
    "num_experts": 0,
    "num_local_experts": 0,
    "query_pre_attn_scalar": None,
    "residual_multiplier": 1.0,
    "rope_interleaved": False,
    "scale_attn_by_inverse_layer_idx": False,
    "sliding_window_pattern": None,
    "softmax_scale": None,
    "use_bidirectional_attention": False,
    "use_mrope": False,
}


# The settings of each type of rotary positions, besides base and share.
_YARN = ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim")


_ROPE = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        *("factor", "original_max_position_embeddings"),
        *("low_freq_factor", "high_freq_factor"),
    ),
    "yarn": ("factor", "original_max_position_embeddings", "truncate", *_YARN),
}


def require(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raise ValueError for a field that has another value than the expected one."""
    for key, value in expected.items():
        given = fields.get(key, value)
        if given == value:
            continue
        if key == "quantization_config":
            raise ValueError(
                f"{key}: quantised weights are not read: get the model with weights in "
                "16 bits, whose name lacks the kind of quantisation (-FP8, -AWQ)."
            )
        raise ValueError(f"{key}={given!r} is not supported: only {value!r} is.")


def rope_settings(fields: dict[str, Any], *, scaled: bool = False) -> dict[str, Any]:
    """Return the settings of rotary positions, which are top-level fields or, in newer
    files, fields of rope_parameters or, in older files, of rope_scaling.

    Args:
        scaled: whether the reader computes other types than "default".

    Raises:
        ValueError: a setting is not supported, or two contradict each other.
    """
    rope: dict[str, Any] = {}
    spelled: dict[str, str] = {}
    base = ("rope_theta", "partial_rotary_factor")
    top = (*base, "rope_type")
    for place in (None, "rope_parameters", "rope_scaling"):
        settings = fields if place is None else fields.get(place) or {}
        if not isinstance(settings, dict):
            raise ValueError(f"{place}={settings!r} is not an object.")
        for key, value in settings.items():
            if value is None or (place is None and key not in top):
                continue
            name = "rope_type" if key == "type" else key
            if rope.setdefault(name, value) != value:
                raise ValueError(f"{key} is both {rope[name]!r} and {value!r}.")
            at = f"{place}: " if place else ""
            spelled.setdefault(name, f"{at}{key}={value!r}")
    kind = rope.setdefault("rope_type", "default")
    if kind not in (list(_ROPE) if scaled else ["default"]):
        raise ValueError(f"{spelled['rope_type']} is not supported.")
    types = {"truncate": bool, "original_max_position_embeddings": int}
    for key in [key for key in rope if key != "rope_type"]:
        if key not in (*base, *_ROPE[kind]):
            raise ValueError(f"{spelled[key]} is not supported.")
        if type(rope[key]) not in (types.get(key, float), types.get(key, int)):
            name = types.get(key, float).__name__
            raise ValueError(f"{spelled[key]} is not of the type {name}.")
        if key not in types:
            rope[key] = float(rope[key])
    for key in ("factor", "low_freq_factor", "high_freq_factor"):
        if key in _ROPE[kind] and key not in rope:
            raise ValueError(f"rope_scaling of type {kind!r} has no {key!r}.")
    return rope


def without_null(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields whose value is not null."""
    return {key: x for key, x in fields.items() if x is not None}


def share_of(part: int, whole: int) -> float:
    """Return part / whole so rounded that its product with the whole is not below the
    part."""
    share = part / whole
    return share if int(whole * share) == part else math.nextafter(share, 1.0)


def read_native_sizes(c: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of our config that `native_sizes` writes and all of these
    families must give."""
    return {
        "vocab_size": c["vocab_size"],
        "width": c["hidden_size"],
        "num_layers": c["num_hidden_layers"],
        "num_heads": c["num_attention_heads"],
        "ffn_width": c["intermediate_size"],
        "context_length": c["max_position_embeddings"],
    }


def native_sizes(c: ChatGLMConfig) -> dict[str, Any]:
    """Return the fields that GLM and the Llama-like families spell alike."""
    return {
        "vocab_size": c.vocab_size,
        "hidden_size": c.width,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.num_kv_heads,
        "head_dim": c.head_dim,
        "intermediate_size": c.ffn_width,
        "max_position_embeddings": c.context_length,
        "rms_norm_eps": c.norm_eps,
        "hidden_act": "silu",
        "rope_theta": c.rotary_base,
        "tie_word_embeddings": c.tied,
    }


def complete(
    fields: dict[str, Any], again: ChatGLMConfig, c: ChatGLMConfig
) -> dict[str, Any]:
    """Return the fields if they say all that a config says about the model.

    Args:
        again: the config that is read from the fields.

    Raises:
        ValueError: config.json of the family has no key for a setting.
    """
    how = ("dtype", "param_dtype", "scan_layers", "remat", "quantised", "attention")
    ours, theirs = dataclasses.asdict(c), dataclasses.asdict(again)
    lost = [x for x in ours if x not in how and ours[x] != theirs[x]]
    if lost:
        what = ", ".join(f"{name}={ours[name]!r}" for name in lost)
        raise ValueError(
            f"config.json of a {fields['model_type']!r} model cannot express {what}."
        )
    return fields
