"""Layers on several stages: the numbers of one device."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.parallel.layers import apply_layers
from rlhf_jax.parallel.mesh import check_layers, make_mesh
from rlhf_jax.parallel.sharding import parameter_spec, shard_batch
from rlhf_jax.planning.hlo import collectives
from rlhf_jax.ppo.options import check_options
from rlhf_jax.training.state import optimizer_step
from tests.parallel.test_meshes import (
    FUSED,
    assert_a_mesh_changes_no_number,
    config,
)

MESHES = [(2, 2, 1, 2), (1, 1, 2, 4)]
SLOW = [
    pytest.param(case, family, mesh, marks=pytest.mark.slow)
    for case in ("sft", "reward", "dpo")
    for family in ("v1", "v2", "glm_edge", "glm4", "mistral", "qwen3")
    for mesh in MESHES
]


@pytest.mark.devices(8)
@pytest.mark.parametrize(
    ("case", "family", "mesh"),
    [
        ("sft", "glm4", (2, 2, 1, 2)),
        ("sft", "qwen3", (2, 1, 2, 2)),
        ("reward", "v2", (1, 1, 2, 4)),
        ("dpo", "v1", (2, 1, 2, 2)),
        *SLOW,
    ],
)
def test_a_pipeline_changes_no_number(case, family, mesh):
    c = dataclasses.replace(config(family), num_layers=4, remat="full")
    assert_a_mesh_changes_no_number(case, c, mesh)


@pytest.mark.devices(8)
def test_stages_work_at_once_and_hand_on_to_their_neighbours():
    """Eight microbatches through four stages take eleven steps, each with one
    permutation of what goes through; no layer is ever sent."""
    layers = jnp.ones((8, 16, 16))
    x = np.ones((16, 4, 16), np.float32)

    def run(layers, x):
        return apply_layers(
            layers,
            lambda layer, x, rows: jnp.tanh(x @ layer) * rows[:, None, None],
            x,
            jnp.arange(16.0),
            scan=True,
            checkpoint=lambda apply: apply,
        )

    expected = run(layers, x)
    mesh = make_mesh((2, 1, 1, 4))
    with jax.set_mesh(mesh):
        stages = jax.NamedSharding(mesh, jax.P("pipe"))
        arguments = jax.device_put(layers, stages), shard_batch(x)
        compiled = jax.jit(run).lower(*arguments).compile()
        np.testing.assert_allclose(compiled(*arguments), expected, rtol=1e-5)
    found = [c for c in collectives(compiled.as_text()) if c.times == 11]
    assert found
    assert {c.kind for c in found} == {"collective-permute"}
    assert all(c.bytes_moved <= 4 * 4 * 16 for c in found)


def test_each_stage_has_its_layers():
    sizes = {"data": 1, "fsdp": 2, "tensor": 1, "pipe": 4}
    spec = parameter_spec(".blocks.mlp.up.kernel", (8, 32, 2, 48), sizes)
    assert spec == jax.P("pipe", "fsdp", None, None)


@pytest.mark.devices(8)
def test_layers_that_stages_cannot_share_get_the_nearest_sizes():
    with jax.set_mesh(make_mesh((1, 2, 1, 4))):
        check_layers(28)
        with pytest.raises(ValueError, match=r"pipe=4 .* 6 layers.*: 3 or 6"):
            check_layers(6)


@pytest.mark.devices(8)
def test_what_a_pipeline_cannot_do_is_refused():
    with jax.set_mesh(make_mesh((1, 4, 1, 2))):
        with pytest.raises(ValueError, match=r"PPO has no pipeline.* 80 %"):
            check_options(None)
        with pytest.raises(ValueError, match=r"optimizer.fused .* pipe to 1"):
            optimizer_step(None, None, None, optimizer=FUSED, microbatches=1)
