"""Errors of plan.py that need no compiler."""

import ast
import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import ppo
from docs import make_memory_table
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.planning import programs, start
from rlhf_jax.planning.plan import by_arithmetic
from rlhf_jax.planning.roofline import GIB, GPUS

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


def test_the_run_that_the_docs_say_fits_one_gpu_fits_and_starts():
    """PPO of 6B with all four models; the docs have the table of this plan."""
    page = (ROOT / "docs" / "memory_planning.md").read_text()
    section = page.partition("### One GPU")[2].partition("###")[0]
    config = ppo.get_config("chatglm3_6b")
    for key, value in re.findall(r"--config\.(\S+)=(\S+)", section):
        *path, field = key.split(".")
        node = functools.reduce(getattr, path, config)
        node[field] = value if isinstance(node[field], str) else ast.literal_eval(value)
    rows = [line.split("|")[1:-1] for line in section.splitlines() if "|" in line]
    shown = {name.split()[0]: columns for name, *columns in rows[2:]}
    gpu = GPUS["h200"].memory
    with jax.set_mesh(make_mesh((1, 1, 1), jax.devices()[:1])):
        beginning = start.of(config)
        sizes = {"start": [0, start.size(beginning.arguments), 0]}
        for program in programs.of(config):
            plan = by_arithmetic(config, program, program, "h200")
            assert plan.fits
            sizes[program.name] = plan.memory.values()
    assert sizes["start"][1] < gpu
    for name, columns in shown.items():
        wanted = [float(x.strip() or 0) for x in columns]
        np.testing.assert_allclose([x / GIB for x in sizes[name]], wanted, atol=0.051)
    assert shown.keys() == sizes.keys()


@pytest.mark.devices(8)
def test_a_line_of_the_table_of_devices_is_the_plan_of_its_command(tmp_path):
    page = make_memory_table.PAGE.read_text()
    section = page.partition(make_memory_table.BEGIN)[2]
    assert make_memory_table.line("SFT", "1.5B") in section
    assert "\n".join(make_memory_table.commands()) in section
    cell = make_memory_table.smallest("SFT", "Flash", "adapters", "H200")
    assert f"| SFT, Flash, adapters | {cell} |" in page
    command = section.partition("# SFT:")[2].partition("# DPO")[0].split("python ")[-1]
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} {command.strip()} --json={tmp_path}/plan"],
        env=os.environ | {"N": "1", "TOPOLOGY": "v5e:1x1", "MODEL": "glm_edge_1_5b"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "plan").read_text())["programs"].values()
    needed = max(sum(row["memory"].values()) for row in rows)
    assert needed == make_memory_table.need("SFT", "1.5B", "v5e:1x1", "int8")
