"""Quantised models: outputs within a few per cent of float32, in less memory."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rlhf_jax.models import huggingface
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.heads import ScoreModel
from rlhf_jax.models.presets import preset
from rlhf_jax.models.quantise import quantise
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.parallel.sharding import create, shard_parameters
from tests.models.families import FAMILIES, random_model, random_tokens


def relative_error(got, expected):
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "family", ["glm4", "llama", "qwen3", "glm4_moe", "glm4_moe_lite"]
)
def test_a_quantised_model_says_nearly_the_same(family):
    config = FAMILIES[family]
    if config.num_experts:  # all of them, so that no near tie between two matters
        every = config.num_experts
        config = dataclasses.replace(config, experts_per_token=every)
    model = random_model(config)
    tokens = random_tokens(model.config, (2, 12))
    answer = jax.jit(lambda model, tokens: model(tokens))
    expected = answer(model, tokens)
    quantised = jax.jit(quantise)(model)
    floats = r"embedding|head|norm|bias|scale|router"
    for path, x in jax.tree_util.tree_leaves_with_path(quantised):
        name = jax.tree_util.keystr(path)
        assert (x.dtype == jnp.int8) != bool(re.search(floats, name)), name
    assert 0 < relative_error(answer(quantised, tokens), expected) < 0.02
    scorer = ScoreModel(model, rngs=nnx.Rngs(0))
    expected = answer(scorer, tokens)
    quantised = jax.jit(quantise)(scorer)
    assert 0 < relative_error(answer(quantised, tokens), expected) < 0.05


def test_every_output_has_a_scale_of_its_own():
    """One scale for all would lose the outputs that are small."""
    model = random_model(dataclasses.replace(FAMILIES["v2"], scan_layers=True))
    kernel = model.blocks.attention.query.kernel
    sizes = 10.0 ** np.arange(-2, 2).reshape(1, 1, 4, 1)  # by head
    grid = np.random.default_rng(0).integers(-127, 128, kernel.shape)
    grid[:, 0] = 127  # then the others are on the grid of 255 steps
    kernel[...] = jnp.asarray(grid * sizes, jnp.float32)
    layer = quantise(model).blocks.attention.query
    assert layer.kernel_scale.shape == (2, 1, 4, 16)
    np.testing.assert_allclose(
        layer.kernel[...] * layer.kernel_scale[...], kernel[...], rtol=1e-6
    )


def test_a_decode_loop_reads_the_integers():
    """For it floats are cast once, before it begins; integers cast then would be read
    as two or four bytes at every token."""
    config = dataclasses.replace(FAMILIES["v2"], dtype="bfloat16")
    ready = quantise(random_model(config)).for_decoding()
    assert ready.blocks[0].mlp.up.kernel[...].dtype == jnp.int8
    assert ready.blocks[0].mlp.up.kernel_scale[...].dtype == jnp.float32
    assert ready.embedding[...].dtype == jnp.bfloat16


@pytest.mark.devices(8)
def test_frozen_models_of_6b_take_a_byte_a_weight_and_are_split_as_before():
    sizes = {}
    with jax.set_mesh(make_mesh((1, 8, 1))):
        for quantised in (False, True):
            config = preset("chatglm3_6b", param_dtype="bfloat16", quantised=quantised)
            shapes = jax.eval_shape(lambda c=config: ChatGLM(c, rngs=nnx.Rngs(0)))
            sizes[quantised] = sum(
                x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes)
            )
            (up,) = jax.tree.leaves(shard_parameters(shapes).blocks.mlp.up.kernel)
            assert up.sharding.spec[1] == "fsdp"
    assert sizes[True] < 0.56 * sizes[False]


@pytest.mark.devices(8)
@pytest.mark.parametrize("family", ["v2", "glm4_moe"])
def test_quantising_on_a_mesh_and_while_loading_is_the_same(family, tmp_path):
    model = random_model(dataclasses.replace(FAMILIES[family], scan_layers=True))
    expected = quantise(model)
    huggingface.save(model, tmp_path)
    how = {"dtype": "float32", "param_dtype": "float32", "quantised": True}
    mesh = make_mesh((2, 2, 2))
    with jax.set_mesh(mesh):
        whole = create(quantise, model)
        loaded = huggingface.load(tmp_path, mesh=mesh, **how)
    for got in (whole, loaded, huggingface.load(tmp_path, **how)):
        for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-6)
    layouts = [[x.sharding for x in jax.tree.leaves(m)] for m in (whole, loaded)]
    assert layouts[0] == layouts[1]
