"""Whole runs on a mesh of eight devices: the numbers of one device."""

import importlib
import shutil

import jax
import numpy as np
import pytest

from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.training.metrics import MEASURED, read_metrics


def run(config, workdir, mesh=None, devices=None):
    stage = importlib.import_module(f"rlhf_jax.stages.{config.stage}")
    if mesh is None:
        stage.run(config, str(workdir))
    else:
        with jax.set_mesh(make_mesh(mesh, devices)):
            stage.run(config, str(workdir))
    return read_metrics(workdir)


def assert_close(lines, expected):
    for a, b in zip(lines, expected, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            if name.startswith(MEASURED):
                continue
            # One of a few hundred tokens may be just on the other side of a bound.
            atol = 0.01 if name.endswith("clipfrac") else 2e-5
            np.testing.assert_allclose(
                a[name], b[name], rtol=2e-3, atol=atol, err_msg=name
            )


MESH, PIPELINE = (2, 2, 2), (2, 2, 1, 2)
RUNS = [
    (stage, mesh)
    for stage in ("sft", "reward", "ppo", "dpo")
    for mesh in (MESH, PIPELINE)
    if (stage, mesh) != ("ppo", PIPELINE)  # which is refused
]


@pytest.mark.devices(8)
@pytest.mark.slow  # the next test is the quick one
@pytest.mark.parametrize(("stage", "mesh"), RUNS)
def test_a_mesh_changes_no_number_of_a_run(
    stage, mesh, stage_config, reward_folder, tmp_path
):
    config = stage_config(stage, batch_size=16)
    if stage == "ppo":
        config.judge_model = reward_folder
    alone = run(config, tmp_path / "alone")
    sharded = run(config, tmp_path / "mesh", mesh)
    assert_close(sharded, alone)


@pytest.mark.devices(8)
@pytest.mark.parametrize("stage", ["sft", pytest.param("ppo", marks=pytest.mark.slow)])
def test_a_checkpoint_of_eight_devices_goes_on_with_fewer(
    stage, stage_config, tmp_path
):
    every = {"sft": 2, "ppo": 1}[stage]
    config = stage_config(stage, batch_size=16, save_every=every)
    eight = run(config, tmp_path / "eight", MESH)
    for devices, mesh in ((1, (1, 1, 1)), (4, (1, 2, 2))):
        workdir = tmp_path / str(devices)
        shutil.copytree(tmp_path / "eight", workdir)
        (workdir / "summary.json").unlink()
        shutil.rmtree(workdir / "checkpoints" / str(len(eight)))  # back to the middle
        resumed = run(config, workdir, mesh, jax.devices()[:devices])
        assert resumed[:every] == eight[:every]
        assert_close(resumed, eight)
        # Nothing was copied: the second half was computed again.
        measured = next(name for name in eight[-1] if name.startswith(MEASURED))
        assert resumed[-1][measured] != eight[-1][measured]


@pytest.mark.devices(8)
def test_a_batch_that_the_mesh_cannot_share_is_refused_at_once(stage_config, tmp_path):
    config = stage_config("sft", batch_size=6)
    with pytest.raises(ValueError, match=r"batch_size=6 .*Nearest that do: 4 or 8"):
        run(config, tmp_path / "run", (2, 2, 2))
    assert not (tmp_path / "run").exists()
