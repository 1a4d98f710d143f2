"""The command lines that a sweep stands for."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def sweep(folder, *flags):
    command = ["launch/sweep.py", "--config=configs/sft.py:tiny", f"--workdir={folder}"]
    return subprocess.run(
        [sys.executable, *command, "--print", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_grids_multiply_and_lists_go_together(tmp_path):
    grid = ["--grid=config.epochs=1,2", "--grid=config.seed=0,1,2"]
    both = ["--list=config.max_tokens=64,128", "--list=config.batch_size=8,16"]
    found = sweep(tmp_path, *grid, *both, "--set=config.model=micro")
    lines = found.stdout.splitlines()
    assert len(set(lines)) == 2 * 3 * 2, found.stderr
    assert all("--config.model=micro" in line for line in lines)
    assert all(
        ("--config.max_tokens=64" in line) == ("--config.batch_size=8" in line)
        for line in lines
    )


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--grid=config.epoch=1", "Did you mean 'epochs'?"),
        ("--grid=config.epochs=many", "many is of original type"),
        ("--grid=epochs=1", "is not of the form config.KEY=VALUE"),
    ],
)
def test_what_the_config_does_not_take_is_refused(tmp_path, flag, message):
    found = sweep(tmp_path, flag)
    assert found.returncode == 1 and message in found.stderr
    assert "Traceback" not in found.stderr
