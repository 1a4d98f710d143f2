"""Latent attention: its cache, against keys and values that are expanded."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models import kv_cache
from rlhf_jax.models.adapters import adapted
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.config import ChatGLMConfig
from rlhf_jax.models.huggingface_config import read, write
from rlhf_jax.models.lora import LoRA
from rlhf_jax.models.presets import preset
from rlhf_jax.models.quantise import quantise
from tests.models.families import FAMILIES, random_model, random_tokens, with_fields

LITE = FAMILIES["glm4_moe_lite"]
LORA = LoRA(rank=3, alpha=6.0, maps="")


def stirred(model):
    """The same model with adapters that are not zero."""

    def stir(path, x):
        if "lora_b" not in jax.tree_util.keystr(path):
            return x
        return 0.1 * jax.random.normal(jax.random.key(x.size), x.shape, x.dtype)

    return jax.tree_util.tree_map_with_path(stir, model)


def variant(kind: str) -> ChatGLM:
    config = dataclasses.replace(LITE, query_rank=0) if "direct" in kind else LITE
    model = random_model(config)
    model = jax.jit(quantise)(model) if "int8" in kind else model
    if "lora" in kind:
        model = stirred(adapted(model, LORA, key=jax.random.key(0)))
    return with_fields(model, scan_layers="scan" in kind)


@jax.jit
def whole(model, tokens, mask):
    return model.hidden(tokens, mask)


@jax.jit
def step(model, tokens, mask, cache, prompts=None):
    return model.decode(tokens, mask, cache, prompts)


@pytest.mark.parametrize("kind", ["plain scan", "direct int8 lora"])
def test_the_cache_of_latents_changes_nothing(kind):
    """Rows are padded on the left, and on the right where a row has ended; then two
    responses follow each prompt, whose latents both read."""
    model = variant(kind)
    tokens = random_tokens(model.config, (4, 11))
    tokens[1::2, :6] = tokens[::2, :6]  # two rows a prompt
    mask = np.ones(tokens.shape, bool)
    mask[:2, :2] = False
    mask[3, 9:] = False
    expected = whole(model, tokens, mask)

    first, read, _ = step(model, tokens[:, :6], mask[:, :6], model.init_cache(4, 6))
    prompts = kv_cache.take_rows(read, jnp.array([0, 2]))
    for cache, before in (
        (kv_cache.lengthen(read, 5), None),
        (model.init_cache(4, 8), prompts),
    ):
        pieces = [first]
        for i in range(6, 11):
            token, real = tokens[:, i : i + 1], mask[:, i : i + 1]
            hidden, cache, _ = step(model, token, real, cache, before)
            pieces.append(hidden)
        found = np.concatenate(pieces, axis=1)
        np.testing.assert_allclose(found[mask], expected[mask], atol=2e-5)


def test_the_cache_has_one_latent_and_one_rotary_key_a_token():
    config = preset("glm4_7_flash", vocab_size=8, num_layers=2, num_experts=4)
    cache = jax.eval_shape(
        lambda: kv_cache.empty(
            1, 1, layers=2, shape=config.cache_shape, dtype="bfloat16", stacked=True
        )
    )
    assert cache.keys.size + cache.values.size == 2 * (512 + 64)


@pytest.mark.parametrize("kernel", ["splash", "cudnn"])
def test_kernels_of_whole_keys_do_not_read_latents(kernel, caplog):
    model = with_fields(random_model(LITE), attention=kernel)
    tokens = jnp.asarray(random_tokens(LITE, (1, 6)))
    mask = jnp.ones((1, 6), bool)
    cache = model.init_cache(1, 6)
    with caplog.at_level("WARNING"):
        jax.eval_shape(lambda: model.decode(tokens, mask, cache))
    assert not caplog.records


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_width": 0}, "self.latent_width=0 in self.family='glm4_moe_lite'"),
        ({"latent_width": -1}, "latent_width=-1: not a whole number"),
        ({"query_rank": -1}, "query_rank=-1: not a whole number"),
        ({"value_dim": 0}, "value_dim=0: not a whole number"),
        ({"family": "glm4_moe"}, "self.latent_width=24 in self.family='glm4_moe'"),
        ({"num_kv_heads": 2}, "self.num_kv_heads=2 of self.num_heads=4"),
        ({"qk_norm": True}, "self.qk_norm=True"),
        ({"window": 8}, "self.window=8"),
        ({"rotary_fraction": 1.0}, "self.rotary_fraction=1.0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ChatGLMConfig(**dataclasses.asdict(LITE) | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_interleave": False}, "rope_interleave=False is not supported"),
        ({"head_dim": 64}, "head_dim=64 is not supported"),
        ({"qk_head_dim": 99}, "qk_head_dim=99 is not supported"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported"),
        ({"qk_rope_head_dim": 0}, "qk_rope_head_dim=0: not a whole number above 0"),
        ({"kv_lora_rank": 0}, "self.latent_width=0"),
        ({"num_key_value_heads": 2}, "self.num_kv_heads=2 of self.num_heads=4"),
        ({"rope_scaling": {"type": "yarn"}}, "type='yarn' is not supported"),
        ({"mlp_layer_types": ["sparse", "dense"]}, "mlp_layer_types=.*'dense'"),
        ({"first_k_dense_replace": 0}, "mlp_layer_types=.*first_k_dense_replace=0"),
    ],
)
def test_settings_of_config_json_that_are_not_computed_are_refused(changes, message):
    fields = write(LITE, "native")
    assert read(fields, dtype="float32", param_dtype="float32")[0] == LITE
    with pytest.raises(ValueError, match=message) as error:
        read(fields | changes, dtype="float32", param_dtype="float32")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("turned", range(2, 40, 2))
@pytest.mark.parametrize("head_dim", [44, 56, 98])
def test_every_share_of_a_head_may_turn(turned, head_dim):
    fields = write(LITE, "native") | {
        "qk_rope_head_dim": turned,
        "qk_nope_head_dim": head_dim - turned,
    }
    config, _ = read(fields, dtype="float32", param_dtype="float32")
    assert config.rotary_dims == turned
    assert write(config, "native")["qk_rope_head_dim"] == turned
