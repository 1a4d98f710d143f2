"""The config.json of published checkpoints, as in their repositories, and the number of
parameters that each makes."""

import dataclasses

import pytest

from rlhf_jax.data.tokenizers.tokenizer import SPECIAL_TOKENS, STOP_TOKENS
from rlhf_jax.models import huggingface_config
from rlhf_jax.models.presets import num_parameters, preset
from rlhf_jax.models.rope_scaling import RopeScaling

GLM = {"hidden_act": "silu", "attention_dropout": 0.0, "rms_norm_eps": 1e-5}
GLM |= {"head_dim": 128, "rope_theta": 10000.0, "torch_dtype": "bfloat16"}
GLM_0414 = GLM | {
    "model_type": "glm4",
    "attention_bias": False,
    "eos_token_id": [151329, 151336, 151338],
    "max_position_embeddings": 32768,
    "num_key_value_heads": 2,
    "pad_token_id": 151329,
    "partial_rotary_factor": 0.5,
    "tie_word_embeddings": False,
    "vocab_size": 151552,
}
LLAMA3 = {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0}
LLAMA3 |= {"original_max_position_embeddings": 8192, "rope_type": "llama3"}
CONFIGS = {
    "glm-edge-1.5b-chat": GLM
    | {
        "model_type": "glm",
        "attention_bias": False,
        "eos_token_id": [59246, 59253, 59255],
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "max_position_embeddings": 8192,
        "num_attention_heads": 16,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "pad_token_id": 59246,
        "partial_rotary_factor": 1.0,
        "tie_word_embeddings": True,
        "vocab_size": 59264,
    },
    "GLM-Z1-9B-0414": GLM_0414
    | {
        "hidden_size": 4096,
        "intermediate_size": 13696,
        "num_attention_heads": 32,
        "num_hidden_layers": 40,
    },
    "GLM-Z1-32B-0414": GLM_0414
    | {
        "hidden_size": 6144,
        "intermediate_size": 23040,
        "num_attention_heads": 48,
        "num_hidden_layers": 61,
    },
    "GLM-4.7-Flash": {
        "model_type": "glm4_moe_lite",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "eos_token_id": [154820, 154827, 154829],
        "first_k_dense_replace": 1,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 10240,
        "kv_lora_rank": 512,
        "max_position_embeddings": 202752,
        "moe_intermediate_size": 1536,
        "n_group": 1,
        "n_routed_experts": 64,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_attention_heads": 20,
        "num_experts_per_tok": 4,
        "num_hidden_layers": 47,
        "num_key_value_heads": 20,
        "num_nextn_predict_layers": 1,
        "pad_token_id": 154820,
        "partial_rotary_factor": 1.0,
        "q_lora_rank": 768,
        "qk_nope_head_dim": 192,
        "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "routed_scaling_factor": 1.8,
        "tie_word_embeddings": False,
        "topk_group": 1,
        "topk_method": "noaux_tc",
        "v_head_dim": 256,
        "vocab_size": 154880,
    },
    "SmolLM2-135M-Instruct": {
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "is_llama_config": True,
        "max_position_embeddings": 8192,
        "mlp_bias": False,
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-5,
        "rope_interleaved": False,
        "rope_scaling": None,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
        "transformers.js_config": {"kv_cache_dtype": {"fp16": "float16"}},
        "vocab_size": 49152,
    },
    "Llama-3.1-8B-Instruct": {
        "model_type": "llama",
        "attention_bias": False,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-5,
        "rope_scaling": LLAMA3,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "vocab_size": 128256,
    },
    "Llama-3.2-1B-Instruct": {
        "model_type": "llama",
        "attention_bias": False,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "num_attention_heads": 32,
        "num_hidden_layers": 16,
        "num_key_value_heads": 8,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-5,
        "rope_scaling": LLAMA3 | {"factor": 32.0},
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "vocab_size": 128256,
    },
    "Mistral-7B-v0.1": {
        "model_type": "mistral",
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
        "vocab_size": 32000,
    },
    "Mistral-7B-Instruct-v0.3": {
        "model_type": "mistral",
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "vocab_size": 32768,
    },
    "Qwen2.5-0.5B-Instruct": {
        "model_type": "qwen2",
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "max_position_embeddings": 32768,
        "max_window_layers": 21,
        "num_attention_heads": 14,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "Qwen2.5-7B-Instruct": {
        "model_type": "qwen2",
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "max_position_embeddings": 32768,
        "max_window_layers": 28,
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "sliding_window": 131072,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "vocab_size": 152064,
    },
    "Qwen3-0.6B": {
        "model_type": "qwen3",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "max_position_embeddings": 40960,
        "max_window_layers": 28,
        "num_attention_heads": 16,
        "num_hidden_layers": 28,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "Qwen3-8B": {
        "model_type": "qwen3",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "max_position_embeddings": 40960,
        "max_window_layers": 36,
        "num_attention_heads": 32,
        "num_hidden_layers": 36,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
}


def config_of(name: str):
    fields = CONFIGS[name]
    config, naming = huggingface_config.read(
        fields, dtype="bfloat16", param_dtype="float32"
    )
    assert naming == "native"
    return dataclasses.replace(config, scan_layers=True, remat="full")


@pytest.mark.parametrize(
    ("name", "like", "changes"),
    [
        ("glm-edge-1.5b-chat", "glm_edge_1_5b", {}),
        ("GLM-4.7-Flash", "glm4_7_flash", {}),
        ("GLM-Z1-9B-0414", "glm4_0414_9b", {"qkv_bias": False}),
        ("GLM-Z1-32B-0414", "glm4_0414_32b", {}),
        ("Llama-3.1-8B-Instruct", "llama3_8b", {}),
        ("Mistral-7B-Instruct-v0.3", "mistral_7b", {}),
        (
            "Mistral-7B-v0.1",
            "mistral_7b",
            {"vocab_size": 32000, "rotary_base": 1e4, "window": 4096},
        ),
        ("Qwen2.5-7B-Instruct", "qwen2_7b", {}),
        ("Qwen3-8B", "qwen3_8b", {}),
    ],
)
def test_a_published_config_is_its_preset(name, like, changes):
    assert config_of(name) == preset(like, **changes)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("GLM-Z1-9B-0414", 9_400_094_720),
        ("GLM-Z1-32B-0414", 32_566_081_536),
        ("SmolLM2-135M-Instruct", 134_515_008),
        ("Llama-3.2-1B-Instruct", 1_235_814_400),
        ("Mistral-7B-v0.1", 7_241_732_096),
        ("Qwen2.5-0.5B-Instruct", 494_032_768),
        ("Qwen3-0.6B", 596_049_920),
    ],
)
def test_a_published_config_makes_its_number_of_parameters(name, count):
    assert num_parameters(config_of(name)) == count


@pytest.mark.parametrize("name", [x for x in CONFIGS if x.lower().startswith("glm")])
def test_answers_of_glm_end_at_the_published_ids(name):
    """Special tokens stand in one order, from the id of <|endoftext|> on."""
    first = CONFIGS[name]["pad_token_id"]
    ids = [first + SPECIAL_TOKENS.index(token) for token in STOP_TOKENS]
    assert ids == CONFIGS[name]["eos_token_id"]


def test_llama_3_2_scales_its_frequencies_by_32():
    scaling = RopeScaling("llama3", 32.0, original_length=8192, slow=1.0, fast=4.0)
    assert config_of("Llama-3.2-1B-Instruct").rope_scaling == scaling


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_written_is_read_as_the_same_model(name):
    config = config_of(name)
    fields = huggingface_config.write(config, "native")
    again, _ = huggingface_config.read(fields, dtype="bfloat16", param_dtype="float32")
    assert dataclasses.replace(again, scan_layers=True, remat="full") == config
    assert fields["model_type"] == CONFIGS[name]["model_type"]
