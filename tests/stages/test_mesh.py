"""Whole runs on a mesh of eight devices: the numbers of one device."""

import importlib

import jax
import numpy as np
import pytest

from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.training.metrics import read_metrics

MEASURED = ("time/", "tokens_per_second")  # of the machine, not of the run


def run(config, workdir, mesh=None):
    stage = importlib.import_module(f"rlhf_jax.stages.{config.stage}")
    if mesh is None:
        stage.run(config, str(workdir))
    else:
        with jax.set_mesh(make_mesh(mesh)):
            stage.run(config, str(workdir))
    return read_metrics(workdir)


MESH, PIPELINE = (2, 2, 2), (2, 2, 1, 2)
SLOW = [
    pytest.param(stage, mesh, marks=pytest.mark.slow)
    for stage in ("sft", "reward", "ppo", "dpo")
    for mesh in (MESH, PIPELINE)
    if (stage, mesh) not in (("sft", MESH), ("ppo", PIPELINE))
]


@pytest.mark.parametrize(("stage", "mesh"), [("sft", MESH), *SLOW])
def test_a_mesh_changes_no_number_of_a_run(stage, mesh, stage_config, tmp_path):
    config = stage_config(stage, batch_size=16)
    alone = run(config, tmp_path / "alone")
    sharded = run(config, tmp_path / "mesh", mesh)
    # And again, from the checkpoint on another mesh.
    assert run(config, tmp_path / "mesh", (1, 4, 2)) == sharded
    for a, b in zip(alone, sharded, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            if name.startswith(MEASURED):
                continue
            # Of a few hundred tokens, one may be just on the other side of a bound.
            atol = 0.01 if name.endswith("clipfrac") else 2e-5
            np.testing.assert_allclose(
                a[name], b[name], rtol=2e-3, atol=atol, err_msg=name
            )


def test_a_batch_that_the_mesh_cannot_share_is_refused_at_once(stage_config, tmp_path):
    config = stage_config("sft", batch_size=6)
    with pytest.raises(ValueError, match=r"batch_size=6 .*Nearest that do: 4 or 8"):
        run(config, tmp_path / "run", (2, 2, 2))
    assert not (tmp_path / "run").exists()
