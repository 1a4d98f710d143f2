"""Llama, Mistral, Qwen2 and Qwen3: their order of dims, and every key of their config
that changes the result."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from rlhf_jax.models import huggingface, huggingface_config
from rlhf_jax.models.rope_scaling import RopeScaling
from tests.models import llama_twin
from tests.models.families import FAMILIES, random_model, random_tokens

FLOAT32 = {"dtype": "float32", "param_dtype": "float32"}
KINDS = ("llama", "mistral", "qwen2", "qwen3")
YARN = RopeScaling("yarn", 4.0, 16, slow=1.0, fast=32.0, attention_factor=1.25)
LLAMA3 = RopeScaling("llama3", 8.0, 16, slow=1.0, fast=4.0)
VARIANTS = {
    **{kind: {} for kind in KINDS},
    "llama yarn": {"rope_scaling": YARN},
    "llama yarn in parts": {"rope_scaling": dataclasses.replace(YARN, truncate=False)},
    "llama linear": {"rope_scaling": None, "position_divisor": 3.0},
    "llama plain": {
        "rope_scaling": None,
        "tied": True,
        "qkv_bias": False,
        "output_bias": False,
        "mlp_bias": False,
    },
    "mistral whole": {"window": None, "rope_scaling": LLAMA3, "position_divisor": 1.0},
    "qwen2 window": {"window": 4, "tied": False},
    "qwen3 biases": {"qkv_bias": True, "output_bias": True, "window": 3, "tied": True},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_equal_those_of_another_implementation(name, tmp_path):
    config = dataclasses.replace(FAMILIES[name.split()[0]], **VARIANTS[name])
    huggingface.save(random_model(config), tmp_path)
    model = huggingface.load(tmp_path, **FLOAT32)
    assert model.config == config
    tokens = random_tokens(config, (1, 20))
    fields = json.loads((tmp_path / "config.json").read_text())
    tensors = load_file(tmp_path / "model.safetensors")
    expected = llama_twin.logits(fields, tensors, tokens[0])
    found = jax.jit(lambda model, tokens: model(tokens))(model, tokens)
    np.testing.assert_allclose(found[0], expected, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_dim_and_the_one_half_a_head_on_are_neighbours_here(kind, tmp_path):
    config = FAMILIES[kind]
    model = random_model(config)
    huggingface.save(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    attention, half = model.blocks.attention, config.head_dim // 2
    order = np.arange(config.head_dim).reshape(half, 2).T.reshape(-1)
    assert order[:2].tolist() == [0, 2]
    assert (order[half], order[half + 1]) == (1, 3)

    def theirs(name):
        return tensors[f"model.layers.1.self_attn.{name}"]

    kernel = np.asarray(attention.query.kernel[1])[..., order]  # [D, N, H]
    np.testing.assert_array_equal(
        theirs("q_proj.weight"), kernel.reshape(config.width, -1).T
    )
    keys, values = np.asarray(attention.key_value.kernel[1]).swapaxes(0, 1)
    keys = keys[..., order].reshape(config.width, -1)
    np.testing.assert_array_equal(theirs("k_proj.weight"), keys.T)
    np.testing.assert_array_equal(
        theirs("v_proj.weight"), values.reshape(config.width, -1).T
    )
    if config.qkv_bias:
        bias = np.asarray(attention.query.bias[1])[..., order]
        np.testing.assert_array_equal(theirs("q_proj.bias"), bias.reshape(-1))
    if config.qk_norm:
        for ours, name in (("query", "q"), ("key", "k")):
            scale = getattr(attention, f"{ours}_norm").scale[1]
            np.testing.assert_array_equal(
                theirs(f"{name}_norm.weight"), np.asarray(scale)[order]
            )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of the four kinds, whose config.json a test changes."""
    root = tmp_path_factory.mktemp("published")
    for kind in KINDS:
        config = dataclasses.replace(
            FAMILIES[kind], rope_scaling=None, position_divisor=1.0, window=None
        )
        huggingface.save(random_model(config), root / kind)
    return root


def config_with(saved, kind, changes):
    """The config that is read from a folder with some fields changed or left out."""
    fields = json.loads((saved / kind / "config.json").read_text()) | changes
    fields = {key: x for key, x in fields.items() if x != "absent"}
    return huggingface_config.read(fields, **FLOAT32)[0]


YARN_FIELDS = {"rope_type": "yarn", "factor": 4.0}
LLAMA3_FIELDS = {"type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}
REFUSED = [
    ("llama", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
    ("llama", {"pretraining_tp": 2}, "pretraining_tp=2"),
    ("llama", {"quantization_config": {"bits": 4}}, "quantization_config: "),
    ("llama", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0"),
    ("llama", {"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0"),
    ("llama", {"query_pre_attn_scalar": 224}, "query_pre_attn_scalar=224"),
    ("llama", {"attention_multiplier": 0.1}, "attention_multiplier=0.1"),
    ("llama", {"residual_multiplier": 0.2}, "residual_multiplier=0.2"),
    ("llama", {"embedding_multiplier": 12.0}, "embedding_multiplier=12.0"),
    ("llama", {"logits_scaling": 8.0}, "logits_scaling=8.0"),
    ("llama", {"logit_scale": 0.06}, "logit_scale=0.06"),
    ("llama", {"rope_interleaved": True}, "rope_interleaved=True"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
    ("llama", {"no_rope_layers": [1, 0]}, "no_rope_layers="),
    ("llama", {"num_local_experts": 8}, "num_local_experts=8"),
    ("llama", {"is_causal": False}, "is_causal=False"),
    ("llama", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ("llama", {"sliding_window": 8}, "sliding_window=8"),
    ("llama", {"layer_types": ["full_attention", "chunked"]}, "layer_types="),
    ("llama", {"layer_types": 2}, "layer_types=2"),
    ("llama", {"head_dim": 15}, "head_dim=15"),
    ("mistral", {"attention_bias": True}, "attention_bias=True"),
    ("mistral", {"mlp_bias": True}, "mlp_bias=True"),
    ("mistral", {"sliding_window": 0}, "window=0"),
    ("mistral", {"sliding_window": "8"}, "sliding_window='8'"),
    (
        "mistral",
        {"sliding_window": 8, "use_sliding_window": False},
        "sliding_window=8 contradicts",
    ),
    (
        "mistral",
        {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
        "sliding_window=8",
    ),
    ("qwen2", {"attention_bias": False}, "attention_bias=False"),
    ("qwen2", {"use_mrope": True}, "use_mrope=True"),
    ("qwen2", {"use_qk_norm": True}, "use_qk_norm=True"),
    ("llama", {"softmax_scale": 0.1}, "softmax_scale=0.1"),
    (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
        "sliding_window=8",
    ),
    (
        "qwen3",
        {"layer_types": ["sliding_attention"] * 2, "use_sliding_window": False},
        "layer_types=",
    ),
    ("qwen3", {"mlp_bias": True}, "mlp_bias=True"),
    ("qwen3", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "type='dynamic'"),
    ("llama", {"rope_scaling": {"rope_type": "longrope"}}, "rope_type='longrope'"),
    ("llama", {"rope_scaling": {"type": "mrope", "factor": 2.0}}, "type='mrope'"),
    ("llama", {"rope_scaling": {"type": ["linear"]}}, r"type=\['linear'\]"),
    ("llama", {"rope_scaling": {"factor": 2.0}}, "factor=2.0"),
    ("llama", {"rope_scaling": {"type": "linear"}}, "'linear' has no 'factor'"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 0}}, "divisor=0.0"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": "2"}}, "factor='2'"),
    (
        "llama",
        {"rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 32}},
        "rope_scaling: beta_fast=32",
    ),
    ("llama", {"rope_parameters": LLAMA3_FIELDS}, "has no 'high_freq_factor'"),
    (
        "llama",
        {"rope_parameters": LLAMA3_FIELDS | {"high_freq_factor": 1.0}},
        "slow=1.0 is not below",
    ),
    (
        "llama",
        {"rope_parameters": LLAMA3_FIELDS | {"rope_type": "linear"}},
        "rope_type is both|type is both",
    ),
    (
        "llama",
        {
            "original_max_position_embeddings": 32,
            "rope_scaling": YARN_FIELDS | {"original_max_position_embeddings": 16},
        },
        "original_max_position_embeddings is",
    ),
    ("llama", {"rope_scaling": YARN_FIELDS | {"truncate": 1}}, "truncate=1"),
    (
        "llama",
        {"rope_scaling": YARN_FIELDS | {"original_max_position_embeddings": 16.0}},
        "original_max_position_embeddings=16.0",
    ),
    ("llama", {"rope_scaling": YARN_FIELDS | {"beta_fast": True}}, "beta_fast=True"),
    ("llama", {"rope_scaling": YARN_FIELDS, "rope_theta": 1.0}, "rope_theta=1.0"),
    (
        "llama",
        {"rope_scaling": YARN_FIELDS, "rope_parameters": {"rope_theta": 7.0}},
        "rope_theta is both",
    ),
]


@pytest.mark.parametrize(
    ("kind", "changes", "message"), REFUSED, ids=[m for _, _, m in REFUSED]
)
def test_what_is_not_computed_is_refused_by_name(kind, changes, message, saved):
    with pytest.raises(ValueError, match=message) as error:
        config_with(saved, kind, changes)
    assert f"config.json of a '{kind}' model" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "changes", "field", "value"),
    [
        ("llama", {"head_dim": None}, "head_dim", 8),
        ("llama", {"head_dim": "absent"}, "head_dim", 8),
        ("qwen3", {"head_dim": "absent"}, "head_dim", 128),
        ("llama", {"num_key_value_heads": "absent"}, "num_kv_heads", 4),
        ("llama", {"rms_norm_eps": "absent"}, "norm_eps", 1e-6),
        ("llama", {"rope_theta": "absent"}, "rotary_base", 10000.0),
        ("llama", {"attention_bias": "absent"}, "output_bias", False),
        ("llama", {"tie_word_embeddings": "absent"}, "tied", False),
        ("llama", {"pretraining_tp": None}, "family", "llama"),
        ("llama", {"rope_interleaved": False}, "family", "llama"),
        ("llama", {"sliding_window": 8, "use_sliding_window": False}, "window", None),
        ("mistral", {"attention_bias": None}, "qkv_bias", False),
        ("qwen2", {"attention_bias": None}, "qkv_bias", True),
        ("mistral", {"sliding_window": 64}, "window", None),
        ("mistral", {"sliding_window": 63}, "window", 63),
        ("mistral", {"sliding_window": "absent"}, "window", None),
        (
            "mistral",
            {"sliding_window": "absent", "max_position_embeddings": 5000},
            "window",
            4096,
        ),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": False}, "window", None),
        (
            "qwen2",
            {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 2},
            "window",
            None,
        ),
        (
            "qwen2",
            {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 0},
            "window",
            8,
        ),
        ("qwen3", {"layer_types": ["full_attention"] * 2}, "window", None),
    ],
)
def test_keys_that_are_left_out_mean_what_transformers_takes(
    kind, changes, field, value, saved
):
    assert getattr(config_with(saved, kind, changes), field) == value


@pytest.mark.parametrize(
    ("changes", "attention_factor"),
    [
        ({}, 0.1 * math.log(4) + 1),
        ({"attention_factor": 0.5}, 0.5),
        ({"factor": 0.5}, 1.0),
        (
            {"mscale": 0.7, "mscale_all_dim": 2.0},
            (0.07 * math.log(4) + 1) / (0.2 * math.log(4) + 1),
        ),
        ({"mscale": 0.7}, 0.1 * math.log(4) + 1),
    ],
)
@pytest.mark.parametrize("place", ["rope_scaling", "rope_parameters"])
def test_what_yarn_multiplies_queries_and_keys_by(
    place, changes, attention_factor, saved
):
    config = config_with(saved, "llama", {place: YARN_FIELDS | changes})
    assert config.rope_scaling.attention_factor == pytest.approx(attention_factor)
    assert config.rope_scaling.original_length == 64


@pytest.mark.parametrize("base", [10000.0, 500000.0, 7.0])
@pytest.mark.parametrize("length", [4, 64, 8192])
@pytest.mark.parametrize(
    ("kind", "truncate"), [("llama3", True), ("yarn", True), ("yarn", False)]
)
def test_scaled_frequencies_equal_those_of_the_twin(kind, length, base, truncate):
    slow, fast = {"llama3": (1.0, 4.0), "yarn": (1.0, 32.0)}[kind]
    scaling = RopeScaling(kind, 8.0, length, slow, fast, truncate=truncate)
    config = dataclasses.replace(
        FAMILIES["llama"], head_dim=64, rotary_base=base, rope_scaling=scaling
    )
    fields = huggingface_config.write(config, "native")
    cos, sin = llama_twin.turns(fields, 64, 2)
    expected = np.arctan2(sin[1, 0], cos[1, 0])  # the angles at position 1
    np.testing.assert_allclose(scaling.frequencies(base, 64), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("llama", {"output_bias": False}, "'llama' model cannot express output_bias="),
        ("llama", {"qk_norm": True}, "cannot express qk_norm=True"),
        ("llama", {"window": 5}, "sliding_window=5|window=5"),
        ("llama", {"position_divisor": 2.0}, "cannot express rope_scaling="),
        ("llama", {"rotary_fraction": 0.5}, "cannot express rotary_fraction=0.5"),
        ("mistral", {"qkv_bias": True}, "'mistral' model cannot express qkv_bias=True"),
        ("qwen2", {"mlp_bias": True}, "cannot express mlp_bias=True"),
        ("qwen3", {"residual": "sandwich"}, "cannot express residual='sandwich'"),
        ("v2", {"qk_norm": True}, "'glm' model cannot express qk_norm=True"),
        ("glm4", {"window": 5}, "'glm4' model cannot express window=5"),
    ],
)
def test_what_a_familys_config_has_no_key_for_is_not_lost(family, changes, message):
    config = dataclasses.replace(FAMILIES[family], **changes)
    with pytest.raises(ValueError, match=message):
        huggingface_config.write(config, "native")


def test_a_window_as_wide_as_the_context_is_none():
    config = dataclasses.replace(FAMILIES["mistral"], window=64)
    assert huggingface_config.write(config, "native")["sliding_window"] is None
