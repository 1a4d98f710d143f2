"""On a mesh, everything is as on one device: logits, losses, gradients, updates."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest

from rlhf_jax.batches import SFTBatch
from rlhf_jax.models.config import ChatGLMConfig
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.parallel.sharding import shard_batch, shard_parameters
from rlhf_jax.stages import sft
from rlhf_jax.training.optimizers import sgd
from rlhf_jax.training.state import TrainState
from tests.models.families import FAMILIES, random_model, random_tokens

MESHES = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)]
ROWS, PROMPT, RESPONSE = 8, 6, 6
# Its update is the gradient.
SGD = sgd(lambda step: 1.0, clip_norm=0.0)


def config(family: str) -> ChatGLMConfig:
    """Heads that eight devices can share; key-value heads that they cannot."""
    small = FAMILIES[family]
    kv_heads = 8 if small.num_kv_heads == small.num_heads else 2
    return dataclasses.replace(
        small, num_heads=8, num_kv_heads=kv_heads, head_dim=8, scan_layers=True
    )


def dialogues(config) -> SFTBatch:
    tokens = random_tokens(config, (ROWS, PROMPT + RESPONSE), prompt=2)
    lengths = np.random.default_rng(0).integers(10, 13, (ROWS, 1))
    mask = np.arange(tokens.shape[1])[None] < lengths
    return SFTBatch(tokens, mask, mask & (np.arange(tokens.shape[1])[None] >= 4))


def sft_step(model, batch):
    state, metrics = sft.train_step(
        TrainState.create(model, SGD),
        batch,
        optimizer=SGD,
        microbatches=1,
        num_tokens=60,
        chunk_size=4,
    )
    return model(batch.tokens, batch.mask), state, metrics


CASES = {"sft": (sft_step, dialogues)}


@functools.cache
def on_one_device(case, family):
    run, make_batch = CASES[case]
    c = config(family)
    return jax.device_get(jax.jit(run)(random_model(c), make_batch(c)))


def every_combination():
    for case, family, mesh in itertools.product(CASES, FAMILIES, MESHES):
        quick = family == "v2" and (case == "sft" or mesh == (2, 2, 2))
        marks = () if quick else pytest.mark.slow
        yield pytest.param(case, family, mesh, marks=marks)


@pytest.mark.parametrize(("case", "family", "mesh"), every_combination())
def test_a_mesh_changes_no_number(case, family, mesh):
    expected = on_one_device(case, family)
    run, make_batch = CASES[case]
    c = config(family)
    with jax.set_mesh(make_mesh(mesh)):
        model = random_model(c)
        places = jax.tree.map(lambda x: x.sharding, shard_parameters(model))
        model = jax.device_put(model, places)
        got = jax.jit(run)(model, shard_batch(make_batch(c)))
    for (path, x), y in zip(
        jax.tree_util.tree_flatten_with_path(got)[0],
        jax.tree.leaves(expected),
        strict=True,
    ):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4, err_msg=name)
