"""Checks that a command makes before its stage makes a folder."""

import pytest
from flax import nnx

from configs import ppo, sft
from rlhf_jax.launching import checks
from rlhf_jax.launching.checks import check_stage
from rlhf_jax.models import huggingface
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.presets import preset


@pytest.fixture
def config():
    return sft.get_config("chatglm3_6b")


@pytest.mark.parametrize(
    ("memory", "optimizer", "needed"),
    [(60e9, "adamw", "75 GB"), (20e9, "sgd", "25 GB")],
)
def test_a_model_that_the_devices_cannot_hold(
    memory, optimizer, needed, config, monkeypatch, tmp_path
):
    config.data.path, config.optimizer.name = "testbed", optimizer
    monkeypatch.setattr(checks, "device_memory", lambda: memory)
    with pytest.raises(ValueError, match=f"6.2 billion .* at least {needed}") as error:
        check_stage(config, tmp_path)
    assert f"its devices have {memory / 1e9:.0f} GB" in str(error.value)
    monkeypatch.setattr(checks, "device_memory", lambda: 2 * memory)
    check_stage(config, tmp_path)


def test_the_memory_of_this_machine_is_known():
    assert checks.device_memory() > 1e8


def test_a_run_that_cannot_fit_says_in_one_line_what_it_needs(monkeypatch, tmp_path):
    """PPO of all parameters on one GPU; what is set already is not advised."""
    config = ppo.get_config("chatglm3_6b")
    config.data.path, config.mesh = "testbed", (1, 8, 1)
    config.offload_frozen = True
    monkeypatch.setattr(checks, "device_memory", lambda: 132.8 * 2**30)
    with pytest.raises(ValueError, match="at least 147 GB") as error:
        check_stage(config, tmp_path)
    said = str(error.value)
    assert "\n" not in said
    assert "the run's start" in said
    assert "devices have 143 GB. The most is: moments (policy) 50 GB" in said
    assert "Set config.optimizer.moment_dtype=bfloat16, " in said
    assert "config.offload_moments=True" in said
    assert "offload_frozen" not in said
    config.optimizer.moment_dtype = config.value_optimizer.moment_dtype = "bfloat16"
    config.offload_moments = True
    check_stage(config, tmp_path)


def test_a_start_model_has_its_own_size(monkeypatch, tmp_path):
    """Not that of config.model, which a start model leaves unread."""
    folder = tmp_path / "small"
    small = preset("micro")
    huggingface.save(ChatGLM(small, rngs=nnx.Rngs(0)), folder)
    config = sft.get_config("chatglm3_6b")
    config.data.path, config.init_from = "testbed", str(folder)
    monkeypatch.setattr(checks, "device_memory", lambda: 1e9)
    check_stage(config, tmp_path / "run")
    monkeypatch.setattr(checks, "device_memory", lambda: 1e5)
    with pytest.raises(ValueError, match=r"small has 4.8e-05 billion parameters"):
        check_stage(config, tmp_path / "run")
