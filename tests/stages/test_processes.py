"""Two processes with a device each make the run of one process with two."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from rlhf_jax.training.metrics import MEASURED, read_metrics
from rlhf_jax.training.weights import load_model

ROOT = Path(__file__).parents[2]


def start(config: dict, workdir, devices: int, *more: str) -> subprocess.Popen:
    """An iteration of PPO, from random weights."""
    settings = [f"--config.{key}={value}" for key, value in config.items()]
    return subprocess.Popen(
        [
            sys.executable,
            str(ROOT / "launch" / "train.py"),
            f"--config={ROOT}/configs/ppo.py:tiny",
            f"--workdir={workdir}",
            *settings,
            *more,
        ],
        env=os.environ
        | {
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(devices),
            "HOME": str(workdir.parent),  # where compiled programs are kept
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output


def test_an_iteration_of_ppo_in_two_processes_is_that_of_one(data_folder, tmp_path):
    config = {
        "model": "micro",
        "data.path": data_folder,
        "mesh": "(1,2,1)",
        "total_steps": 1,
        "batch_size": 8,
        "minibatches": 2,
        "sft_batch_size": 4,
        "max_sft_tokens": 256,
        "max_prompt_tokens": 128,
        "max_response_tokens": 12,
        "pad_to_multiple": 128,
    }
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    place = f"--coordinator={address}", "--num_processes=2"
    both = [
        start(config, tmp_path / "two", 1, *place, f"--process_id={i}") for i in (0, 1)
    ]
    outputs = [finish(process) for process in both]
    finish(start(config, tmp_path / "one", 2))

    (two,), (one,) = read_metrics(tmp_path / "two"), read_metrics(tmp_path / "one")
    assert two.keys() == one.keys()
    for name, value in one.items():
        if not name.startswith(MEASURED):
            np.testing.assert_allclose(
                two[name], value, rtol=2e-4, atol=2e-5, err_msg=name
            )
    for item in ("model", "value"):
        models = [load_model(tmp_path / n, item=item) for n in ("two", "one")]
        for x, y in zip(*map(jax.tree.leaves, models), strict=True):
            np.testing.assert_allclose(x, y, atol=1e-4)
    # One process tells of the run.
    assert "short enough" in outputs[0]
    assert "short enough" not in outputs[1]
