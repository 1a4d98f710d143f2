"""config.json of the GLM family in transformers: "glm", "glm4", "glm4_moe" and
"glm4_moe_lite"."""

from typing import Any

from rlhf_jax.models.config import ChatGLMConfig
from rlhf_jax.models.huggingface_settings import (
    NATIVE_FIXED,
    complete,
    native_sizes,
    read_native_sizes,
    require,
    rope_settings,
    share_of,
    without_null,
)

# Settings of routers that are computed in this one way.
_ROUTING_FIXED = {
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "moe_layer_freq": 1,
    "mlp_bias": False,
    "sliding_window": None,
    "layer_types": None,
}


MOE = {"glm4_moe": "Glm4MoeForCausalLM", "glm4_moe_lite": "Glm4MoeLiteForCausalLM"}


def read_glm(c: dict[str, Any]) -> ChatGLMConfig:
    """Return our config of a "glm" or "glm4" model."""
    require(without_null(c), NATIVE_FIXED)
    rope = rope_settings(c)  # the defaults below are those of transformers
    head_dim = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
    return ChatGLMConfig(
        **read_native_sizes(c),
        num_kv_heads=c["num_key_value_heads"],
        head_dim=head_dim,
        residual="sandwich" if c["model_type"] == "glm4" else "pre",
        norm_eps=c["rms_norm_eps"],
        qkv_bias=c["attention_bias"],
        rotary_fraction=rope.get("partial_rotary_factor", 0.5),
        rotary_base=rope.get("rope_theta", 10000.0),
        tied=c.get("tie_word_embeddings", False),
    )


def read_glm4_moe(c: dict[str, Any]) -> ChatGLMConfig:
    """Return our config of a "glm4_moe" or "glm4_moe_lite" model."""
    given = without_null(c)
    fixed = {k: x for k, x in NATIVE_FIXED.items() if k != "num_local_experts"}
    require(given, fixed | _ROUTING_FIXED)
    rope = rope_settings(c)  # the defaults below are those of transformers
    experts = c["n_routed_experts"]
    require(given, {"num_local_experts": experts})
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
        **read_native_sizes(c),
        num_kv_heads=c["num_key_value_heads"],
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


def _read_latents(
    c: dict[str, Any], given: dict[str, Any], rope: dict[str, Any]
) -> dict[str, Any]:
    """Return the fields of latent attention, whose head is unturned dims and turned
    ones."""
    turned, rest = c["qk_rope_head_dim"], c["qk_nope_head_dim"]
    for key, value in {"qk_rope_head_dim": turned, "qk_nope_head_dim": rest}.items():
        if type(value) is not int or value < 1:
            raise ValueError(f"{key}={value!r}: not a whole number above 0.")
    fixed = {"rope_interleave": True, "use_qk_norm": False, "head_dim": turned}
    require(given, fixed | {"qk_head_dim": turned + rest})
    require(rope, {"partial_rotary_factor": 1.0})
    return {
        "head_dim": turned + rest,
        "rotary_fraction": share_of(turned, turned + rest),
        "output_bias": given.get("attention_bias", False),
        "latent_width": c["kv_lora_rank"],
        "query_rank": 0 if c["q_lora_rank"] is None else c["q_lora_rank"],
        "value_dim": c["v_head_dim"],
    }


def _dense_layers(given: dict[str, Any]) -> int:
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


def write_glm(c: ChatGLMConfig) -> dict[str, Any]:
    """Return the fields of config.json of a "glm" or "glm4" model."""
    kind, name = ("glm4", "Glm4") if c.residual == "sandwich" else ("glm", "Glm")
    fields = {
        "architectures": [f"{name}ForCausalLM"],
        "model_type": kind,
        **native_sizes(c),
        "attention_bias": c.qkv_bias,
        "partial_rotary_factor": c.rotary_fraction,
        # Without this key transformers uses GLM-4's id, which a smaller vocabulary
        # lacks.
        "pad_token_id": None,
    }
    return complete(fields, read_glm(fields), c)


def write_glm4_moe(c: ChatGLMConfig) -> dict[str, Any]:
    """Return the fields of config.json of a mixture of experts."""
    fields = {
        "architectures": [MOE[c.family]],
        "model_type": c.family,
        **native_sizes(c),
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
    return complete(fields, read_glm4_moe(fields), c)
