import dataclasses
import json

import pytest

from rlhf_jax.models.config import ChatGLMConfig
from rlhf_jax.models.rope_scaling import RopeScaling
from tests.models.families import FAMILIES, SMALL


def test_turned_dims_follow_the_size_of_the_heads():
    config = ChatGLMConfig(**SMALL)
    assert (config.head_dim, config.rotary_dims) == (16, 8)
    assert dataclasses.replace(config, head_dim=32).rotary_dims == 16
    assert dataclasses.replace(config, rotary_fraction=1.0).rotary_dims == 16


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_comes_back_from_json(family):
    config = FAMILIES[family]
    fields = json.loads(json.dumps(dataclasses.asdict(config)))
    fields["mask_tokens"] = tuple(fields["mask_tokens"])
    if fields["rope_scaling"]:
        fields["rope_scaling"] = RopeScaling(**fields["rope_scaling"])
    assert ChatGLMConfig(**fields) == config
    assert hash(ChatGLMConfig(**fields)) == hash(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"residual": "post"}, "residual='post': not in"),
        ({"remat": "some"}, "remat='some': not in"),
        ({"rotary": "none"}, "rotary='none': not in"),
        ({"num_kv_heads": 3}, "self.num_heads=4 not a multiple of"),
    ],
)
def test_impossible_configs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ChatGLMConfig(**SMALL | changes)
