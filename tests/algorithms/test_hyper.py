"""Every option of a config reaches the field of its name."""

import dataclasses
from types import SimpleNamespace

import pytest

from rlhf_jax import algorithms


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "ppo"])
def test_an_option_reaches_the_field_of_its_name(stage):
    kind = algorithms.find(stage).Hyper
    names = {field.name for field in dataclasses.fields(kind)} - {"num_tokens"}
    config = SimpleNamespace(**{name: name for name in names})
    found = dataclasses.asdict(kind.from_config(config, 7))
    assert found.pop("num_tokens", 7) == 7
    assert found == {name: name for name in names}
