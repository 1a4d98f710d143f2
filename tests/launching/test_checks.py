"""Checks that a command makes before its stage makes a folder."""

import pytest

from configs import sft
from rlhf_jax.launching import checks
from rlhf_jax.launching.checks import check_stage


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
