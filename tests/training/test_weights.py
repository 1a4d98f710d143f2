"""How a stage's models compute, and in what they are stored."""

import jax
import jax.numpy as jnp
import pytest

from configs import ppo
from rlhf_jax.training import weights


@pytest.mark.parametrize(
    ("machine", "dtype", "attention"),
    [
        ("cpu", "bfloat16", "xla"),
        ("tpu", "bfloat16", "splash"),
        ("gpu", "bfloat16", "cudnn"),
        ("gpu", "float32", "xla"),
    ],
)
def test_published_sizes_are_scanned_and_recomputed_and_attend_as_the_machine_can(
    machine, dtype, attention, monkeypatch
):
    monkeypatch.setattr(weights, "platform", lambda: machine)
    config = ppo.get_config("chatglm3_6b")
    config.dtype = dtype
    assert weights.computation(config) == {
        "dtype": dtype,
        "param_dtype": "float32",
        "scan_layers": True,
        "remat": "full",
        "attention": attention,
    }


@pytest.mark.parametrize(
    ("machine", "kernel"), [("cpu", "splash"), ("cpu", "cudnn"), ("gpu", "splash")]
)
def test_an_attention_that_the_machine_does_not_have_is_refused(
    machine, kernel, monkeypatch
):
    monkeypatch.setattr(weights, "platform", lambda: machine)
    config = ppo.get_config("tiny")
    config.attention = kernel
    with pytest.raises(ValueError, match=rf"'{kernel}' is not for {machine}:.*xla"):
        weights.computation(config)


def test_frozen_models_can_be_loaded_in_eight_bits():
    how = weights.computation(ppo.get_config("tiny")) | {"param_dtype": "int8"}
    key = jax.random.key(0)
    reference = weights.load_policy("", model="micro", num_tokens=500, key=key, **how)
    reward = weights.load_score_model("", backbone=reference, num_tokens=500, key=key)
    for model in (reference, reward.backbone):
        assert model.blocks.mlp.up.kernel[...].dtype == jnp.int8
        assert model.embedding[...].dtype == jnp.float32
