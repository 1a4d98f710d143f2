"""A GPU's memory beside a program's arguments, calculated by hand."""

import dataclasses

import pytest

from configs import dpo, ppo, reward, sft
from rlhf_jax.models.presets import num_parameters, preset
from rlhf_jax.planning.arithmetic import temporaries

MODEL = preset("chatglm3_6b", attention="cudnn")


def of(name, devices=1, model=MODEL, fused=False, **changes):
    config = ppo.get_config("chatglm3_6b")
    config.update(changes)
    config.optimizer.fused = fused
    return temporaries(config, model, name, devices=devices)


def test_a_cache_has_keys_and_values_of_every_layer_and_slot():
    """Twice where it grows to its last size, from half of the responses."""
    slots = 1024 + 512 + 1024 + 1024
    cache = 256 * slots * 28 * 2 * (2 * 128) * 2
    assert of("generate")["cache"] == cache
    assert of("generate", devices=4)["cache"] == cache / 4


@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
def test_the_layers_are_copied_apart_for_decoding_in_the_dtype_of_the_model(
    param_dtype,
):
    model = dataclasses.replace(MODEL, param_dtype=param_dtype)
    apart = of("generate", model=model)["the layers apart"]
    assert apart == pytest.approx(2 * num_parameters(MODEL), rel=1e-3)
    assert of("generate", devices=4, model=model)["the layers apart"] == apart / 4


def test_a_copy_in_8_bits_is_copied_apart_in_8_bits():
    outside = 2 * 4096 * 65024
    in_blocks = num_parameters(MODEL) - outside
    apart = of("generate", rollout_param_dtype="int8")["the layers apart"]
    assert apart == pytest.approx(in_blocks + 2 * outside, rel=1e-2)


def test_the_gradient_is_all_parameters_or_a_layer_and_what_is_outside():
    whole = of("update")["gradient"]
    assert whole == 4 * num_parameters(MODEL)
    outside = 2 * 4096 * 65024
    layer = (num_parameters(MODEL) - outside) / 28
    assert of("update", fused=True)["gradient"] == pytest.approx(4 * (outside + layer))
    assert of("update", microbatches=2)["gradient"] == 2 * whole


def test_smaller_parts_of_a_batch_keep_less_for_the_backward_pass():
    kept = "kept for the backward pass"
    one = of("update", beta_sft=0.0)[kept]
    assert one == 28 * (256 / 4) * 2048 * 4096 * 2
    assert of("update", beta_sft=0.0, minibatches=8)[kept] == one / 2
    everything = dataclasses.replace(MODEL, remat="none")
    assert of("update", model=everything)[kept] > 10 * of("update")[kept]


def test_scores_of_attention_are_in_memory_unless_a_kernel_computes_them():
    xla = dataclasses.replace(MODEL, attention="xla")
    assert "scores of attention" in of("score", model=xla)
    assert "scores of attention" not in of("score")


@pytest.mark.parametrize("stage", [sft, reward, dpo])
def test_every_stage_has_an_update(stage):
    config = stage.get_config("chatglm3_6b")
    found = temporaries(config, MODEL, "update", devices=8)
    assert all(size > 0 for size in found.values())
