"""How a stage's models compute, and in what they are stored."""

import jax
import jax.numpy as jnp
import pytest

from configs import ppo
from rlhf_jax.training import weights


def test_published_sizes_are_scanned_and_recomputed_and_attend_as_the_machine_can():
    found = weights.computation(ppo.get_config("chatglm3_6b"))
    assert found == {
        "dtype": "bfloat16",
        "param_dtype": "float32",
        "scan_layers": True,
        "remat": "full",
        "attention": "xla",  # of "auto", on a CPU
    }


@pytest.mark.parametrize("kernel", ["splash", "cudnn"])
def test_an_attention_that_the_machine_does_not_have_is_refused(kernel):
    config = ppo.get_config("tiny")
    config.attention = kernel
    with pytest.raises(ValueError, match=rf"'{kernel}' is not for cpu.*xla"):
        weights.computation(config)


def test_frozen_models_can_be_loaded_in_eight_bits():
    how = weights.computation(ppo.get_config("tiny")) | {"param_dtype": "int8"}
    key = jax.random.key(0)
    reference = weights.load_policy("", model="micro", num_tokens=500, key=key, **how)
    reward = weights.load_score_model("", backbone=reference, num_tokens=500, key=key)
    for model in (reference, reward.backbone):
        assert model.blocks.mlp.up.kernel[...].dtype == jnp.int8
        assert model.embedding[...].dtype == jnp.float32
