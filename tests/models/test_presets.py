import dataclasses

import pytest

from rlhf_jax.models.presets import PRESETS, num_parameters, preset

# Distinct parameters of the published checkpoints; ChatGLM-6B's head is its embedding.
PUBLISHED = {
    "chatglm_6b": 6_173_286_400,
    "chatglm2_6b": 6_243_584_000,
    "chatglm3_6b": 6_243_584_000,
    "glm4_9b": 9_399_951_360,
    "glm4_0414_9b": 9_400_279_040,
    "glm4_0414_32b": 32_566_081_536,
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
