"""A disk that is full at every write of a save in turn, for real: a small tmpfs."""

import shutil
import subprocess

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import files
from rlhf_jax.data.records import Response, write_records
from rlhf_jax.training import cache, suspects
from rlhf_jax.training.checkpoints import Checkpoints, SaveError
from rlhf_jax.training.metrics import Writer

PAGE = 4096


@pytest.fixture
def disk(tmp_path):
    """A folder on a disk of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False)


def items(step: int) -> dict:
    return {"model": {"kernel": jnp.full((64, 64), float(step))}}


def save(workdir, step: int) -> None:
    checkpoints = Checkpoints(workdir, keep=5)
    checkpoints.save(step, items(step), {})
    checkpoints.close()


def test_whatever_write_finds_no_space_the_checkpoint_before_is_intact(disk):
    failed = 0
    for pages in range(0, 60, 3):
        workdir = disk / "run"
        save(workdir, 1)
        free = shutil.disk_usage(disk).free
        filler = disk / "filler"
        filler.write_bytes(bytes(max(free - pages * PAGE, 0)))
        try:
            save(workdir, 2)
        except SaveError as error:
            failed += 1
            assert "free some space and start the same command again" in str(error)
        except OSError as error:  # before orbax has begun
            failed += 1
            assert "No space left" in str(error)
        filler.unlink()

        checkpoints = Checkpoints(workdir, keep=5)  # the same command again
        step = checkpoints.latest_step()
        found = checkpoints.restore(step, items(0))["model"]["kernel"]
        np.testing.assert_array_equal(found, items(step)["model"]["kernel"])
        if step == 1:
            checkpoints.save(2, items(2), {})
        checkpoints.close()
        assert Checkpoints(workdir, keep=None).latest_step() == 2
        shutil.rmtree(workdir)
    assert 0 < failed < 20  # the largest disks had room


def write_arrays(folder):
    cache.write(folder / "a.npz", np.ones(3, np.float32), {"model": "a"})


def write_metrics(folder):
    writer = Writer(folder, 0, 1, 0.0)
    writer.write(1, {"a": 1.0})
    writer.close()


WRITERS = {
    "a.jsonl": lambda f: write_records(f / "a.jsonl", [Response("x", True)] * 400),
    "a.json": lambda f: files.write_json(f / "a.json", ["x" * 9000]),
    "a.npz": write_arrays,
    "step_000001.npz": lambda f: suspects.save_batch(f, 1, {"b": np.ones(3)}, "nan"),
    "events": write_metrics,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_write_that_finds_no_space_names_its_file_and_leaves_the_old_one(name, disk):
    WRITERS[name](disk)
    before = {p: p.read_bytes() for p in disk.rglob("*") if p.is_file()}
    (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free))
    with pytest.raises(OSError, match=rf"No space left on device: .*{name}"):
        WRITERS[name](disk)
    assert {p: p.read_bytes() for p in before} == before
    assert not list(disk.rglob("*.tmp"))
