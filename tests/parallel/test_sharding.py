import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.heads import ScoreModel
from rlhf_jax.models.lora import LoRA
from rlhf_jax.models.presets import PRESETS, preset
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.parallel.sharding import (
    PARAMETERS,
    constrain,
    create,
    parameter_spec,
    shard_batch,
    shard_parameters,
    to_memory,
)
from rlhf_jax.parallel.vocabulary import lookup
from rlhf_jax.training.optimizers import adafactor, adamw
from rlhf_jax.training.state import TrainState

SIZES = {"data": 2, "fsdp": 2, "tensor": 4}
ADAMW = adamw(1e-3, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, clip_norm=1.0)


def published(name):
    config = PRESETS[name]
    return jax.eval_shape(lambda: ChatGLM(config, rngs=nnx.Rngs(0)))


@functools.cache
def specs_of_all_presets():
    found = {}
    for name in PRESETS:
        leaves, _ = jax.tree_util.tree_flatten_with_path(published(name))
        for path, leaf in leaves:
            path = jax.tree_util.keystr(path)
            found[name, path] = leaf, parameter_spec(path, leaf.shape, SIZES)
    return found


@pytest.mark.parametrize("name", [n for n in PRESETS if n.endswith("b")])
def test_every_matrix_of_every_published_size_is_split_by_all_axes(name):
    for (preset_name, path), (leaf, spec) in specs_of_all_presets().items():
        if preset_name != name or ("kernel" not in path and "embedding" not in path):
            continue
        axes = set(jax.tree.leaves(tuple(spec)))
        expected = {"fsdp", "tensor"}
        if "key_value" in path and leaf.shape[3] % SIZES["tensor"]:
            expected = {"fsdp"}  # two heads for four devices: all hold both
        assert axes == expected, (path, leaf.shape, spec)


def test_every_rule_matches_something():
    lora = LoRA(rank=2, alpha=2.0, maps="")
    experts = dataclasses.replace(preset("tiny_moe"), lora=lora)
    latents = dataclasses.replace(preset("glm4_7_flash"), lora=lora)
    paths = [
        jax.tree_util.keystr(path)
        for config in (preset("micro"), experts, latents)
        for path, _ in jax.tree_util.tree_flatten_with_path(
            jax.eval_shape(lambda config=config: _state(config))
        )[0]
    ]
    for pattern, _ in PARAMETERS:
        assert any(re.search(pattern, path) for path in paths), pattern


def _state(config):
    scorer = ScoreModel(ChatGLM(config, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))
    return TrainState.create(scorer, adafactor(1.0, weight_decay=0.1, clip_norm=1.0))


def test_a_matrix_without_a_rule_is_an_error():
    with pytest.raises(ValueError, match=r"No rule .* for \.router.*\(4, 8\)"):
        parameter_spec(".router", (4, 8), SIZES)
    assert parameter_spec(".count", (4,), SIZES) == P()


@pytest.mark.devices(8)
def test_weights_and_moments_are_made_in_parts_and_none_is_ever_whole():
    config = preset("micro", vocab_size=64, num_heads=8, head_dim=8)
    with jax.set_mesh(make_mesh((1, 4, 2))):
        state = create(
            lambda: TrainState.create(ChatGLM(config, rngs=nnx.Rngs(0)), ADAMW)
        )
    for path, x in jax.tree_util.tree_flatten_with_path(state)[0]:
        name = jax.tree_util.keystr(path)
        if "kernel" in name and x.ndim > 1 and "key_value" not in name:
            assert x.addressable_shards[0].data.size * 8 == x.size, name
    alone = create(lambda: ChatGLM(config, rngs=nnx.Rngs(0)))
    for x, y in zip(jax.tree.leaves(state.model), jax.tree.leaves(alone), strict=True):
        np.testing.assert_array_equal(x, y)


def test_constrain_is_the_identity_without_a_mesh():
    x = jnp.ones((2, 3))
    assert constrain(x, "batch", "vocab") is x


@pytest.mark.devices(8)
def test_rows_of_a_batch_go_to_data_and_fsdp():
    rows = np.arange(16).reshape(8, 2)
    with jax.set_mesh(make_mesh((2, 2, 2))):
        sharded = shard_batch({"x": rows})["x"]
        stacked = shard_batch(rows[None], axis=1)
    assert sharded.sharding.spec == P(("data", "fsdp"))
    assert stacked.addressable_shards[0].data.shape == (1, 2, 2)
    np.testing.assert_array_equal(sharded, rows)


@pytest.mark.devices(8)
@pytest.mark.parametrize("mesh", [(1, 4, 2), (2, 1, 4), (1, 8, 1), (1, 1, 8)], ids=str)
@pytest.mark.parametrize("rows", [8, 3])
def test_a_split_embedding_finds_the_rows_of_a_whole_one(mesh, rows):
    rng = np.random.default_rng(0)
    table = rng.normal(size=(16, 8)).astype(np.float32)
    tokens = rng.integers(0, 16, (rows, 5))
    weight = rng.normal(size=(rows, 5, 8)).astype(np.float32)

    @jax.jit
    @jax.value_and_grad
    def weighted(table):
        return (lookup(table, tokens, "float32") * weight).sum()

    expected = weighted(jnp.asarray(table))
    with jax.set_mesh(make_mesh(mesh)):
        sharded = shard_parameters({"embedding": jnp.asarray(table)})["embedding"]
        got = weighted(jax.device_put(table, sharded.sharding))
    for x, y in zip(got, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


@pytest.mark.devices(8)
def test_arrays_wait_in_the_memory_of_the_host_and_come_back():
    with jax.set_mesh(make_mesh((2, 2, 2))):
        here = shard_batch({"x": np.arange(16).reshape(8, 2)})
        there = to_memory(here, "pinned_host")
        back = to_memory(there, "device")
    assert there["x"].sharding.memory_kind == "pinned_host"
    assert back["x"].sharding == here["x"].sharding
    np.testing.assert_array_equal(back["x"], here["x"])
