"""Llama, Mistral, Qwen2 and Qwen3: their order of dims, and every key of their config
that changes the result."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from rlhf_jax.models import huggingface
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
