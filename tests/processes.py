"""PPO from random weights in processes of its own, as launch/train.py starts them."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SMALL = {
    "model": "micro",
    "mesh": "(1,2,1)",
    "batch_size": 8,
    "minibatches": 2,
    "sft_batch_size": 4,
    "max_sft_tokens": 256,
    "max_prompt_tokens": 128,
    "max_response_tokens": 12,
    "pad_to_multiple": 128,
}


def start(config: dict, workdir: Path, devices: int, *more: str) -> subprocess.Popen:
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


def start_two(config: dict, workdir: Path) -> list[subprocess.Popen]:
    """One run in two processes with a device each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    place = f"--coordinator={address}", "--num_processes=2"
    return [start(config, workdir, 1, *place, f"--process_id={i}") for i in (0, 1)]


def run_two(stages: Path) -> list[subprocess.Popen]:
    """The stages of a file, see tests/run_stages.py, in two processes with a device
    each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    program = [sys.executable, "-m", "tests.run_stages", str(stages), address, "2"]
    return [
        subprocess.Popen(
            [*program, str(index)],
            cwd=ROOT,
            env=os.environ
            | {
                "JAX_PLATFORMS": "cpu",
                "JAX_NUM_CPU_DEVICES": "1",
                "HOME": str(stages.parent),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in (0, 1)
    ]


def finish(*processes: subprocess.Popen) -> list[str]:
    """Return the output of each process, after all have ended well."""
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    for index, process in enumerate(processes):
        assert process.returncode == 0, "\n".join(outputs[index:] + outputs[:index])
    return outputs
