"""A disk that fills up during a run, for real: a small tmpfs."""

import subprocess

import numpy as np
import pytest

from rlhf_jax.stages import sft
from rlhf_jax.training.checkpoints import Checkpoints, SaveError
from rlhf_jax.training.metrics import read_metrics


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 3 MB, and a function that makes it larger."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> int:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        return subprocess.run(command, check=False, capture_output=True).returncode

    if mount("size=3m") != 0:
        pytest.skip("mounting a tmpfs needs root")
    yield folder, lambda: mount("remount,size=200m")
    subprocess.run(["umount", "-l", str(folder)], check=False)


def test_the_last_checkpoint_survives_and_the_run_goes_on(
    small_disk, stage_config, tmp_path
):
    disk, enlarge = small_disk
    config = stage_config("sft", save_every=1, keep_checkpoints=100, epochs=2)
    with pytest.raises((SaveError, OSError), match=r"(?i)no space left"):
        sft.run(config, str(disk / "run"))
    checkpoints = Checkpoints(disk / "run", keep=100)
    reached = checkpoints.latest_step()
    checkpoints.close()
    assert 0 < reached < 16

    assert enlarge() == 0
    sft.run(config, str(disk / "run"))
    sft.run(config, str(tmp_path / "whole"))
    resumed, whole = read_metrics(disk / "run"), read_metrics(tmp_path / "whole")
    assert [m["step"] for m in resumed] == [m["step"] for m in whole]
    np.testing.assert_array_equal(
        [m["loss/sft"] for m in resumed], [m["loss/sft"] for m in whole]
    )
