"""Files of checkpoints that were cut, changed or deleted: never a wrong number."""

import random
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.training import checksums
from rlhf_jax.training.checkpoints import Checkpoints, DamagedError

CORRUPTIONS = 50
STEPS = (2, 4, 6)


def items(step: int) -> dict:
    values = np.random.default_rng(step).normal(size=(2, 16, 8)).astype(np.float32)
    rest = {"moments": jnp.asarray(values[1]), "step": jnp.int32(step)}
    return {"model": {"kernel": jnp.asarray(values[0])}, "rest": rest}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    checkpoints = Checkpoints(workdir, keep=5)
    for step in STEPS:
        checkpoints.save(step, items(step), {"note": f"of step {step}"})
    checkpoints.close()
    return workdir


def corrupt(rng: random.Random, folder: Path) -> Path:
    """Cut, change or delete one of a checkpoint's files; returns which."""
    path = rng.choice(sorted(p for p in folder.rglob("*") if p.is_file()))
    content = bytearray(path.read_bytes())
    kind = rng.choice(["cut", "change", "delete"]) if content else "delete"
    if kind == "delete":
        path.unlink()
    elif kind == "cut":
        path.write_bytes(content[: rng.randrange(len(content))])
    else:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
    return path


def assert_whole(checkpoints: Checkpoints, step: int) -> None:
    found = checkpoints.restore(step, items(0))
    assert checkpoints.meta(step)["note"] == f"of step {step}"
    np.testing.assert_array_equal(
        found["model"]["kernel"], items(step)["model"]["kernel"]
    )
    np.testing.assert_array_equal(
        found["rest"]["moments"], items(step)["rest"]["moments"]
    )
    assert found["rest"]["step"] == step


@pytest.mark.parametrize("seed", range(CORRUPTIONS))
def test_the_checkpoint_before_a_damaged_one_is_used(saved, tmp_path, seed, caplog):
    workdir = tmp_path / "run"
    shutil.copytree(saved, workdir)
    path = corrupt(random.Random(seed), workdir / "checkpoints" / "6")
    is_gone = not path.exists()
    checkpoints = Checkpoints(workdir, keep=5)
    step = checkpoints.latest_step()
    assert_whole(checkpoints, step)
    if path.parent.name == "6" and path.name != checksums.FILE:
        assert step == 6  # notes of orbax about the whole: nothing depends on them
    elif is_gone and path.name == checksums.FILE:
        assert step == 6  # as saved before there were checksums
    else:
        assert step == 4
        (line,) = (r.getMessage() for r in caplog.records if r.levelname == "ERROR")
        assert "/checkpoints/6 is damaged" in line
        assert path.name in line or path.name == checksums.FILE
        checkpoints.save(6, items(6), {"note": "of step 6"})
        checkpoints.wait()
        assert_whole(checkpoints, checkpoints.latest_step())
        assert checkpoints.latest_step() == 6
    checkpoints.close()


def test_when_none_is_whole_the_run_stops_and_says_what_to_do(saved, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(saved, workdir)
    for step in STEPS:
        shutil.rmtree(workdir / "checkpoints" / str(step) / "model" / "d")
    checkpoints = Checkpoints(workdir, keep=5)
    with pytest.raises(DamagedError, match=r"No checkpoint in .* is whole: model/d"):
        checkpoints.latest_step()


def test_who_only_reads_leaves_a_damaged_checkpoint_where_it_is(saved, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(saved, workdir)
    (workdir / "checkpoints" / "6" / "model" / "manifest.ocdbt").unlink()
    checkpoints = Checkpoints(workdir, keep=None)
    assert checkpoints.latest_step() == 4
    assert (workdir / "checkpoints" / "6").is_dir()


def test_a_broken_checkpoint_without_checksums_is_one_clear_error(saved, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(saved, workdir)
    (workdir / "checkpoints" / "6" / checksums.FILE).unlink()
    shutil.rmtree(workdir / "checkpoints" / "6" / "model" / "d")
    checkpoints = Checkpoints(workdir, keep=5)
    assert checkpoints.latest_step() == 6
    with pytest.raises(DamagedError, match=r"checkpoints/6 cannot be read \(.*Delete"):
        checkpoints.restore(6, items(0))
