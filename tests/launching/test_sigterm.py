"""SIGTERM while a command still imports its libraries."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_jax.training import preemption

LAUNCH = Path(__file__).parents[2] / "launch"
COMMANDS = sorted(
    path.name
    for path in LAUNCH.glob("*.py")
    if "preemption.install" in path.read_text()
)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_imports_ends_with_the_status_of_preemption(command, tmp_path):
    slow = tmp_path / "jax" / "__init__.py"  # what every command imports
    slow.parent.mkdir()
    slow.write_text("import time\nprint('importing', flush=True)\ntime.sleep(300)\n")
    process = subprocess.Popen(
        [sys.executable, LAUNCH / command],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "importing\n"
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == preemption.STATUS
    assert "SIGTERM" in said and "Traceback" not in said


def test_every_command_that_runs_stages_is_among_them():
    runs = ("cli.run(", "stage.command(", "run_jobs(")
    expected = [
        path.name
        for path in LAUNCH.glob("*.py")
        if any(call in path.read_text() for call in runs)
    ]
    assert sorted(expected) == COMMANDS
