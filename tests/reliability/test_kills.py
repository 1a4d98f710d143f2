"""SIGKILL, SIGTERM or Ctrl-C at random moments, and what a kill may leave in a folder:
started again, a run ends as if nothing had happened."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from rlhf_jax.training.metrics import MEASURED, read_metrics
from rlhf_jax.training.weights import load_model

ROOT = Path(__file__).parents[2]
CONFIG = "tests/reliability/smallest.py"
TRAINED = ("sft", "reward", "ppo", "dpo")
STAGES = (
    "sft",
    "collect",
    "prepare_comparisons",
    "reward",
    "ppo",
    "pairs",
    "dpo",
    "evaluate",
)
ENDS = {signal.SIGKILL: -9, signal.SIGTERM: 75, signal.SIGINT: 75}  # their statuses
# (stage, what it is doing) in the pipeline's order, each a kill.
MOMENTS = [
    ("data", "lays out"),
    *[("sft", what) for what in ("begins", "saves", "steps", "saves", "ends")],
    *[("collect", what) for what in ("begins", "begins")],
    ("prepare_comparisons", "begins"),
    *[("reward", what) for what in ("begins", "saves", "steps")],
    *[("ppo", what) for what in ("begins", "saves", "begins", "steps", "saves")],
    *[("pairs", what) for what in ("begins", "begins")],
    *[("dpo", what) for what in ("begins", "saves", "begins", "steps")],
    *[("evaluate", what) for what in ("begins", "begins")],
]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Start the pipeline, or one of its stages alone, in a process of its own."""
    home = tmp_path_factory.mktemp("home")  # for the cache of compiled programs
    flags = os.environ.get("XLA_FLAGS", "")
    environment = {**os.environ, "HOME": str(home), "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = f"{flags} --xla_backend_optimization_level=0"

    signal.signal(signal.SIGINT, signal.default_int_handler)  # `&` has it ignored

    def start(workdir: Path, script="pipeline.py", config=CONFIG) -> subprocess.Popen:
        command = [sys.executable, f"launch/{script}", f"--config={config}"]
        with (workdir.parent / f"{workdir.name}.log").open("a") as log:
            return subprocess.Popen(
                [*command, f"--workdir={workdir}"],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=log,
            )

    return start


def kill_when(
    process: subprocess.Popen,
    folder: Path,
    what: str,
    delay: float,
    by: signal.Signals = signal.SIGKILL,
) -> bool:
    """Return True if the process began to do `what` in the folder and was ended `delay`
    seconds later."""
    began = time.time()
    signs = {
        "begins": lambda: [folder / ".lock"],
        "lays out": lambda: [folder],
        "steps": lambda: [folder / "metrics.jsonl"],
        "saves": lambda: folder.glob("checkpoints/*tmp*"),
        "ends": lambda: [folder / "samples.jsonl"],
    }
    while process.poll() is None:
        if any(changed(path) > began for path in signs[what]()):
            time.sleep(delay)
            process.send_signal(by)
            return process.wait() == ENDS[by]
        time.sleep(0.001)
    return False


def litter(folder: Path) -> None:
    """Leave half a line of files that grow, and half of those that appear whole."""
    if (folder / "metrics.jsonl").exists():
        for name in ("metrics.jsonl", "samples.jsonl"):
            with (folder / name).open("ab") as file:
                file.write('{"step": 1, "好'.encode()[:-1])
    for path in [*folder.glob("*.json*"), *folder.glob("*.npz")]:
        content = path.read_bytes()
        path.with_name(path.name + ".tmp").write_bytes(content[: len(content) // 2])


def changed(path: Path) -> float:
    """When, in seconds; 0 for what is not there (any more)."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mtime
    return 0.0


def numbers(workdir: Path) -> list[dict]:
    return [
        {k: x for k, x in line.items() if not k.startswith(MEASURED)}
        for line in read_metrics(workdir)
    ]


def assert_same_bits(a: Path, b: Path) -> None:
    for name in ("summary.json", "evaluate/summary.json", "reward/summary.json"):
        assert (a / name).read_bytes() == (b / name).read_bytes()
    for stage in TRAINED:
        assert numbers(a / stage) == numbers(b / stage)
        for item in ("model", "value") if stage == "ppo" else ("model",):
            assert_same_model(a / stage, b / stage, item)


def assert_same_model(a: Path, b: Path, item: str) -> None:
    x, y = (jax.tree.leaves(load_model(folder, item=item)) for folder in (a, b))
    for left, right in zip(x, y, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.slow
def test_a_pipeline_killed_20_times_ends_with_the_bits_of_an_uninterrupted_one(
    start, tmp_path
):
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert start(run).wait() == 0
    run.rename(whole)  # summaries name folders, so both runs need the same one
    rng, kills = random.Random(0), []
    for stage, what in MOMENTS:
        if (run / stage / "summary.json").exists():  # the last kill came too late
            continue
        delay = rng.choice([0.0, 0.3, 1.0]) * rng.random() if what == "begins" else 0.0
        by = rng.choice([signal.SIGTERM, signal.SIGINT])
        by = by if what == "steps" else signal.SIGKILL
        if kill_when(start(run), run / stage, what, delay, by):
            kills.append((stage, what, round(delay, 3)))
            litter(run / stage)
    assert start(run).wait() == 0
    print(f"{len(kills)} kills: {kills}")
    assert len(kills) >= 20
    assert {stage for stage, _, _ in kills} >= set(STAGES)
    assert sum(what == "saves" for _, what, _ in kills) >= 5
    assert_same_bits(whole, run)


def test_a_stage_killed_inside_a_save_ends_with_the_bits_of_an_uninterrupted_one(
    start, tmp_path
):
    config = f"{CONFIG}:sft"
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert start(whole, "train.py", config).wait() == 0
    process = start(run, "train.py", config)
    assert kill_when(process, run, "saves", 0.0)
    assert not (run / "summary.json").exists()
    litter(run)
    assert start(run, "train.py", config).wait() == 0
    assert (run / "summary.json").read_bytes() == (whole / "summary.json").read_bytes()
    assert numbers(run) == numbers(whole)
    assert_same_model(run, whole, "model")
