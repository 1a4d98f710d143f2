"""Errors of plan.py that need no compiler."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run_plan(topology: str) -> str:
    """Return the error of a plan that cannot be made."""
    command = [
        sys.executable,
        str(ROOT / "launch" / "plan.py"),
        f"--config={ROOT}/configs/sft.py:chatglm3_6b",
        f"--topology={topology}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr


def test_an_unknown_topology_lists_the_known_kinds():
    said = run_plan("v5e:")
    assert "write KIND:SHAPE" in said
    assert "v5e" in said


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is not None, reason="the compiler is there"
)
def test_without_the_compiler_the_extra_is_named():
    said = run_plan("v5e:4x8")
    assert "pip install -e '.[tpu-plan]'" in said
    assert len(said.strip().splitlines()) == 1
