"""However a run ends, it ends soon, with a right status, its message last, its save
done and its folder free; endings.py has the runs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from rlhf_jax.training.checkpoints import Checkpoints
from rlhf_jax.training.metrics import read_metrics

ROOT = Path(__file__).parents[2]
# Case -> status, its last line, the newest checkpoint.
ENDINGS = {
    "done": (0, r"", 4),
    "mistake": (1, r"ValueError: a mistake", 2),
    "late mistake": (1, r"ValueError: a mistake", 4),
    "bug": (1, r"ZeroDivisionError: a bug", 2),
    "no space": (1, r"SaveError: No space left .* free some space and start the", 1),
    "quota": (1, r"SaveError: The disk quota is used up: .*raise the quota", 1),
    "broken disk": (1, r"SaveError: The disk fails: no checkpoint", 1),
    "open files": (1, r"SaveError: Too many open files: .*ulimit -n", 1),
    "no space in the background": (1, r"SaveError: No space left on the disk", 1),
    "SIGTERM": (75, r"SIGTERM: saved .*/checkpoints/2\. The same command goes on", 2),
    "SIGTERM twice": (75, r"SIGTERM: saved .*/checkpoints/2\.", 2),
    "Ctrl-C": (75, r"Ctrl-C: saved .*/checkpoints/2\. The same command goes on", 2),
    "Ctrl-C twice": (130, r"Ctrl-C: left at once", 1),
    "Ctrl-C before the loop": (75, r"Ctrl-C: left at once\. The same command", 0),
    "SIGTERM in the last step": (75, r"SIGTERM: saved .*/checkpoints/4\.", 4),
    "SIGTERM behind the loop": (75, r"left at once, behind .*/checkpoints/4\.", 4),
    "SIGTERM behind an error": (75, r"SIGTERM: left at once", 0),
    "no front door": (1, r"SaveError: The disk fails", 1),
    "stage": (1, r"SaveError: The disk fails", 1),
}


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    folder = tmp_path_factory.mktemp("endings")
    flags = os.environ.get("XLA_FLAGS", "")
    flags += " --xla_backend_optimization_level=0"
    subprocess.run(
        [sys.executable, Path(__file__).with_name("endings.py"), folder],
        cwd=ROOT,
        env={**os.environ, "HOME": str(folder), "XLA_FLAGS": flags},
        check=True,
    )
    return folder, json.loads((folder / "statuses.json").read_text())


@pytest.mark.parametrize("case", ENDINGS)
def test_a_run_ends(case, ended):
    folder, statuses = ended
    status, last, newest = ENDINGS[case]
    lines = (folder / f"{case}.log").read_text().splitlines()
    assert statuses[case] == status, lines
    assert re.search(last, lines[-1] if lines else "")
    assert case in ("bug", "no front door") or "Traceback" not in "".join(lines)
    if "left at once" not in last and case != "no front door":
        assert not (folder / case / ".lock").read_text()
    checkpoints = Checkpoints(folder / case, keep=None)
    if case == "stage":
        steps = read_metrics(folder / case)[-1]["step"]
        assert (checkpoints.latest_step(), statuses["stage again"]) == (steps, 0)
        return
    assert checkpoints.latest_step() == newest
    if newest:
        like = {"x": {"a": jnp.zeros(3, jnp.int32)}}
        assert (checkpoints.restore(newest, like)["x"]["a"] == newest).all()
