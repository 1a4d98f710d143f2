import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.heads import ScoreModel
from rlhf_jax.models.presets import PRESETS, num_parameters, preset
from rlhf_jax.models.quantise import quantise
from rlhf_jax.parallel.sharding import create, creator

# Distinct parameters of the published checkpoints; ChatGLM-6B's head is its embedding.
PUBLISHED = {
    "chatglm_6b": 6_173_286_400,
    "chatglm2_6b": 6_243_584_000,
    "chatglm3_6b": 6_243_584_000,
    "glm4_9b": 9_399_951_360,
    "glm4_0414_9b": 9_400_279_040,
    "glm4_0414_32b": 32_566_081_536,
    "glm4_5": 352_797_829_024,
    "glm4_5_air": 106_852_251_264,
    "glm4_7_flash": 29_943_393_920,
    "llama3_8b": 8_030_261_248,
    "mistral_7b": 7_248_023_552,
    "qwen2_7b": 7_615_616_512,
    "qwen3_8b": 8_190_735_360,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_have_their_published_number_of_parameters(name):
    assert num_parameters(preset(name)) == PUBLISHED[name]


def test_the_1m_variant_of_glm4_9b_has_four_kv_heads():
    config = preset("glm4_9b", num_kv_heads=4, context_length=2**20)
    assert num_parameters(config) == 9_483_857_920


def test_glm4_0414_9b_without_biases():
    config = preset("glm4_0414_9b", qkv_bias=False)
    assert num_parameters(config) == 9_400_094_720


def test_rumination_has_eight_kv_heads():
    assert num_parameters(preset("glm4_0414_32b", num_kv_heads=8)) == 33_141_749_760


def test_fields_can_be_changed_and_wrong_names_are_answered():
    assert preset("tiny", dtype="bfloat16").dtype == "bfloat16"
    assert dataclasses.replace(PRESETS["tiny"]) == preset("tiny")
    with pytest.raises(ValueError, match="glm4_0414_9b"):
        preset("glm5")


SMALL = {"vocab_size": 70, "width": 32, "num_layers": 3, "head_dim": 8, "ffn_width": 24}


EXPERTS = {"num_experts": 9, "expert_width": 12, "num_dense_layers": 1}
LATENTS = {"latent_width": 16, "query_rank": 12, "value_dim": 6}


def drawn(name, *, then=lambda model: model, **how) -> dict:
    """All parameters by name, of a language model and of a reward model."""
    how |= EXPERTS if PRESETS[name].num_experts else {}
    how |= LATENTS if PRESETS[name].latent_width else {}
    kv_heads = 4 if PRESETS[name].latent_width else 2
    config = preset(name, **SMALL, num_heads=4, num_kv_heads=kv_heads, **how)

    def build():
        model = ChatGLM(config, rngs=nnx.Rngs(1))
        return then(model), then(ScoreModel(model, rngs=nnx.Rngs(2)))

    leaves = jax.tree_util.tree_leaves_with_path(create(build))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", PRESETS)
def test_random_weights_are_the_same_numbers_in_every_dtype(name, dtype):
    """Otherwise a policy and its frozen reference would be two models."""
    exact, found = drawn(name, param_dtype="float32"), drawn(name, param_dtype=dtype)
    assert exact.keys() == found.keys()
    for parameter, x in found.items():
        assert x.dtype == dtype or re.search("offset|router", parameter)
        wrong = exact[parameter].astype(x.dtype) != x
        # Another program may round a number to the other side of a tie.
        assert wrong.sum() <= 1, parameter
        step = 2 * jnp.finfo(x.dtype).eps
        np.testing.assert_allclose(x.astype("f"), exact[parameter], step, 1e-7)


@pytest.mark.parametrize("name", PRESETS)
def test_random_weights_of_eight_bits_are_those_numbers_too(name):
    expected = drawn(name, param_dtype="float32", then=quantise)
    found = drawn(name, param_dtype="bfloat16", quantised=True)
    assert expected.keys() == found.keys()
    assert any(x.dtype == np.int8 for x in found.values())
    for parameter, x in found.items():
        np.testing.assert_array_equal(expected[parameter].astype(x.dtype), x, parameter)


def test_random_weights_of_many_layers_are_made_in_the_memory_of_one():
    """float32 numbers, of which 16-bit weights are made, exist for a layer at a time,
    or the model of 32 billion parameters would need 128 GB beside its own 64."""

    def memory(num_layers):
        how = SMALL | {"num_layers": num_layers, "param_dtype": "bfloat16"}
        config = preset("glm4_0414_32b", **how, num_heads=4, num_kv_heads=2)
        make = creator(lambda: ChatGLM(config, rngs=nnx.Rngs(0)))
        return make.lower().compile().memory_analysis()

    few, many = memory(4), memory(64)
    assert many.output_size_in_bytes > 10 * few.output_size_in_bytes
    assert many.temp_size_in_bytes < 1.1 * few.temp_size_in_bytes
