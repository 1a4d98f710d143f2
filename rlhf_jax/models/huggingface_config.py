"""Reading and writing of the config.json of published checkpoints.

`model_type` "chatglm" is ChatGLM-6B (v1) if `inner_hidden_size` is present, otherwise
the remote code of ChatGLM2, ChatGLM3 and GLM-4; "glm" is the latter architecture in
transformers; "glm4" is GLM-4-0414; "glm4_moe" is GLM-4.5, 4.6 and 4.7;
"glm4_moe_lite" is GLM-4.7-Flash. "llama", "mistral", "qwen2" and "qwen3" are those of
transformers.
"""

import dataclasses
import math
from typing import Any

from rlhf_jax.models.config import ChatGLMConfig
from rlhf_jax.models.rope_scaling import RopeScaling

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

# Settings of models of transformers that are not computed, with the value that changes
# nothing, as null does.
_NATIVE_FIXED = {
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
# Settings of routers that are computed in this one way.
_ROUTING_FIXED = {
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "moe_layer_freq": 1,
    "mlp_bias": False,
    "sliding_window": None,
    "layer_types": None,
}
_MOE = {"glm4_moe": "Glm4MoeForCausalLM", "glm4_moe_lite": "Glm4MoeLiteForCausalLM"}
_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
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


def read(fields: dict[str, Any], *, dtype, param_dtype) -> tuple[ChatGLMConfig, str]:
    """Return our config and the naming of the tensors (see `huggingface_names`).

    Raises:
        ValueError: an unknown model type, a missing key or an unsupported setting.
    """
    kind = fields.get("model_type")
    if kind == "chatglm":
        naming = "v1" if "inner_hidden_size" in fields else "remote"
        reader = {"v1": _read_v1, "remote": _read_remote}[naming]
    elif kind in ("glm", "glm4"):
        naming, reader = "native", _read_glm
    elif kind in list(_MOE):  # perhaps of a type that cannot be hashed
        naming, reader = "native", _read_glm4_moe
    elif kind in list(_ARCHITECTURES):
        naming, reader = "native", _read_llama
    else:
        known = ", ".join(map(repr, ("chatglm", "glm", "glm4", *_MOE, *_ARCHITECTURES)))
        raise ValueError(f"model_type {kind!r} is not one of {known}.")
    try:
        config = reader(fields)
    except KeyError as error:
        raise ValueError(f"config.json of a {kind!r} model has no {error}.") from None
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"config.json of a {kind!r} model: {error}") from None
    return dataclasses.replace(config, dtype=dtype, param_dtype=param_dtype), naming


def write(config: ChatGLMConfig, naming: str) -> dict[str, Any]:
    """Return the fields of config.json, spelled so that all versions of transformers
    read them."""
    writer = {"v1": _write_v1, "remote": _write_remote, "native": _write_glm}[naming]
    if config.family != "glm":
        writer = _write_glm4_moe if config.family in _MOE else _write_llama
    return writer(config) | {"torch_dtype": config.param_dtype}


def namings(config: ChatGLMConfig) -> tuple[str, ...]:
    """Return the namings that can hold a model, the preferred one first."""
    if config.rotary == "two_axes":
        return ("v1",)
    is_native = config.residual == "sandwich" or config.rotary_fraction != 0.5
    if is_native or config.family != "glm":
        return ("native",)
    if config.position_divisor != 1.0:
        return ("remote",)
    return ("native", "remote")


def _require(fields, expected):
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


def _rope(fields, *, scaled=False):
    """Return the settings of rotary positions, which are top-level fields or, in newer
    files, fields of rope_parameters or, in older files, of rope_scaling.

    Args:
        scaled: whether the reader computes other types than "default".

    Raises:
        ValueError: a setting is not supported, or two contradict each other.
    """
    rope, spelled = {}, {}
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


def _without_null(c):
    return {key: x for key, x in c.items() if x is not None}


def _check_remote(c):
    """Raise ValueError for keys that only transformers reads, unless they ask for what
    the code published with these models does."""
    _require(c, {"quantization_config": None, "quantization_bit": 0})
    for key, value in _rope(c).items():
        if key != "rope_type":
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


def _read_glm(c):
    _require(_without_null(c), _NATIVE_FIXED)
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
        rotary_fraction=rope.get("partial_rotary_factor", 0.5),
        rotary_base=rope.get("rope_theta", 10000.0),
        tied=c.get("tie_word_embeddings", False),
    )


def _read_glm4_moe(c):
    given = _without_null(c)
    fixed = {k: x for k, x in _NATIVE_FIXED.items() if k != "num_local_experts"}
    _require(given, fixed | _ROUTING_FIXED)
    rope = _rope(c)  # the defaults below are those of transformers
    experts = c["n_routed_experts"]
    _require(given, {"num_local_experts": experts})
    if type(experts) is not int or experts < 1:
        raise ValueError(f"n_routed_experts={experts!r}: not a whole number above 0.")
    latent = c["model_type"] == "glm4_moe_lite"
    scale = given.get("routed_scaling_factor", 1.8 if latent else 1.0)
    if type(scale) not in (int, float):
        raise ValueError(f"routed_scaling_factor={scale!r} is not a number.")
    heads = c["num_attention_heads"]
    if latent:
        attention = _read_latents(c, given, rope)
    else:
        attention = {
            "head_dim": given.get("head_dim", c["hidden_size"] // heads),
            "qk_norm": given.get("use_qk_norm", False),
            "rotary_fraction": rope.get("partial_rotary_factor", 0.5),
        }
    return ChatGLMConfig(
        vocab_size=c["vocab_size"],
        width=c["hidden_size"],
        num_layers=c["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=c["num_key_value_heads"],
        ffn_width=c["intermediate_size"],
        context_length=c["max_position_embeddings"],
        family=c["model_type"],
        norm_eps=given.get("rms_norm_eps", 1e-5),
        qkv_bias=given.get("attention_bias", False),
        **attention,
        rotary_base=rope.get("rope_theta", 10000.0),
        tied=given.get("tie_word_embeddings", False),
        num_experts=experts,
        experts_per_token=c["num_experts_per_tok"],
        expert_width=c["moe_intermediate_size"],
        num_shared_experts=given.get("n_shared_experts", 1),
        num_dense_layers=_dense_layers(given),
        expert_groups=given.get("n_group", 1),
        groups_per_token=given.get("topk_group", 1),
        normalise_weights=given.get("norm_topk_prob", True),
        routed_scale=float(scale),
    )


def _read_latents(c, given, rope):
    """Return the fields of latent attention, whose head is unturned dims and turned
    ones."""
    turned, rest = c["qk_rope_head_dim"], c["qk_nope_head_dim"]
    for key, value in {"qk_rope_head_dim": turned, "qk_nope_head_dim": rest}.items():
        if type(value) is not int or value < 1:
            raise ValueError(f"{key}={value!r}: not a whole number above 0.")
    fixed = {"rope_interleave": True, "use_qk_norm": False, "head_dim": turned}
    _require(given, fixed | {"qk_head_dim": turned + rest})
    _require(rope, {"partial_rotary_factor": 1.0})
    return {
        "head_dim": turned + rest,
        "rotary_fraction": _share(turned, turned + rest),
        "output_bias": given.get("attention_bias", False),
        "latent_width": c["kv_lora_rank"],
        "query_rank": 0 if c["q_lora_rank"] is None else c["q_lora_rank"],
        "value_dim": c["v_head_dim"],
    }


def _share(part: int, whole: int) -> float:
    """Return part / whole so rounded that its product with the whole is not below the
    part."""
    share = part / whole
    return share if int(whole * share) == part else math.nextafter(share, 1.0)


def _dense_layers(given):
    """Return the number of first layers without experts.

    Raises:
        ValueError: other layers have none, or two keys contradict each other.
    """
    first, kinds = given.get("first_k_dense_replace"), given.get("mlp_layer_types")
    if kinds is None:
        return 1 if first is None else first
    count = kinds.count("dense") if isinstance(kinds, list) else 0
    expected = ["dense"] * count + ["sparse"] * (given["num_hidden_layers"] - count)
    if kinds != expected or first not in (None, count):
        raise ValueError(
            f"mlp_layer_types={kinds!r} is not supported: layers without experts must "
            f"be the first ones, as many as first_k_dense_replace={first!r} says."
        )
    return count


def _read_llama(c):
    kind = c["model_type"]
    given, fixed = _without_null(c), dict(_NATIVE_FIXED)
    fixed["use_qk_norm"] = kind == "qwen3"
    if kind != "llama":
        fixed["mlp_bias"] = False
    if kind in ("mistral", "qwen2"):  # no key names the three biases of qwen2
        fixed["attention_bias"] = kind == "qwen2"
    _require(given, fixed)
    attention_bias = given.get("attention_bias", kind == "qwen2")
    rope = _rope(c, scaled=True)
    _require(rope, {"partial_rotary_factor": 1.0})
    heads, head_dim = c["num_attention_heads"], c.get("head_dim")
    if head_dim is None:  # the defaults here are those of transformers
        has_default = kind == "qwen3" and "head_dim" not in c
        head_dim = 128 if has_default else c["hidden_size"] // heads
    is_linear = rope["rope_type"] == "linear"
    base = rope.get("rope_theta", 10000.0)
    return ChatGLMConfig(
        vocab_size=c["vocab_size"],
        width=c["hidden_size"],
        num_layers=c["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=given.get("num_key_value_heads", heads),
        head_dim=head_dim,
        ffn_width=c["intermediate_size"],
        context_length=c["max_position_embeddings"],
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


def _scaling(c, rope, base) -> RopeScaling | None:
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

    def length(scale):
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    scales = [rope.get("mscale"), rope.get("mscale_all_dim")]
    attention_factor = rope.get("attention_factor")
    if attention_factor is None:
        attention_factor = length(1)
        if all(scales):
            attention_factor = length(scales[0]) / length(scales[1])
    return RopeScaling(
        **shared,
        slow=rope.get("beta_slow") or 1.0,
        fast=rope.get("beta_fast") or 32.0,
        attention_factor=attention_factor,
        truncate=rope.get("truncate", True),
    )


def _window(c) -> int | None:
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


def _native_sizes(c):
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


def _write_glm(c):
    kind, name = ("glm4", "Glm4") if c.residual == "sandwich" else ("glm", "Glm")
    fields = {
        "architectures": [f"{name}ForCausalLM"],
        "model_type": kind,
        **_native_sizes(c),
        "attention_bias": c.qkv_bias,
        "partial_rotary_factor": c.rotary_fraction,
        # Without this key transformers uses GLM-4's id, which a smaller vocabulary
        # lacks.
        "pad_token_id": None,
    }
    return _complete(fields, _read_glm(fields), c)


def _write_glm4_moe(c):
    fields = {
        "architectures": [_MOE[c.family]],
        "model_type": c.family,
        **_native_sizes(c),
        "attention_bias": c.qkv_bias,
    }
    if c.latent_width:
        del fields["head_dim"]
        fields |= {
            "q_lora_rank": c.query_rank or None,
            "kv_lora_rank": c.latent_width,
            "qk_nope_head_dim": c.head_dim - c.rotary_dims,
            "qk_rope_head_dim": c.rotary_dims,
            "v_head_dim": c.value_dim,
            "mlp_layer_types": ["dense"] * c.num_dense_layers
            + ["sparse"] * (c.num_layers - c.num_dense_layers),
        }
    else:
        fields["use_qk_norm"] = c.qk_norm
        fields["partial_rotary_factor"] = c.rotary_fraction
    fields |= {
        "n_routed_experts": c.num_experts,
        "num_experts_per_tok": c.experts_per_token,
        "moe_intermediate_size": c.expert_width,
        "n_shared_experts": c.num_shared_experts,
        "first_k_dense_replace": c.num_dense_layers,
        "n_group": c.expert_groups,
        "topk_group": c.groups_per_token,
        "norm_topk_prob": c.normalise_weights,
        "routed_scaling_factor": c.routed_scale,
        "num_nextn_predict_layers": 0,
        "pad_token_id": None,
    }
    return _complete(fields, _read_glm4_moe(fields), c)


def _complete(fields, again, c):
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


def _write_llama(c):
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
        "architectures": [_ARCHITECTURES[c.family]],
        "model_type": c.family,
        **_native_sizes(c),
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
    return _complete(fields, _read_llama(fields), c)
