"""Jobs run real stages in real processes, here the smallest that there are."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf_jax.launching.jobs import Job, run_jobs
from rlhf_jax.training import preemption

ROOT = Path(__file__).parents[2]

TINY = {
    "model": "micro",
    "epochs": 1,
    "batch_size": 4,
    "max_tokens": 64,
    "num_samples": 1,
    "data.testbed.num_sft": 40,
    "data.testbed.num_sft_test": 4,
    "data.testbed.num_comparison_prompts": 4,
    "data.testbed.num_rl_prompts": 4,
    "data.testbed.num_eval_prompts": 4,
    "data.testbed.num_probes": 2,
}


def sft(name, folder, after=(), **fields):
    return Job(name, "configs/sft.py:tiny", TINY | fields, folder / name, after)


def test_jobs_run_in_order_and_failures_stop_what_needs_them(tmp_path):
    first = sft("first", tmp_path)
    second = sft("second", tmp_path, ("first",), init_from=str(first.workdir))
    broken = sft("broken", tmp_path, init_from=str(tmp_path / "nowhere"))
    never = sft("never", tmp_path, ("broken",), init_from=str(broken.workdir))
    failed = run_jobs([never, broken, second, first], workers=2)
    assert set(failed) == {"broken", "never"}
    assert "nowhere holds no model" in failed["broken"]
    assert failed["never"] == "needs broken"
    summary = json.loads((second.workdir / "summary.json").read_text())
    assert summary["loss/sft"] > 0
    assert "Traceback" in (broken.workdir / "log.txt").read_text()
    assert not never.workdir.exists()


def test_what_is_done_is_not_done_again(tmp_path):
    job = sft("job", tmp_path, init_from="nowhere")  # would fail
    job.workdir.mkdir()
    (job.workdir / "summary.json").write_text("{}")
    assert run_jobs([job], workers=1) == {}


def test_sigterm_to_a_sweep_makes_its_runs_save_and_starts_no_other(tmp_path):
    fields = TINY | {"epochs": 5000, "save_every": 5}
    sweep = subprocess.Popen(
        [
            sys.executable,
            ROOT / "launch/sweep.py",
            f"--config={ROOT}/configs/sft.py:tiny",
            f"--workdir={tmp_path}",
            "--grid=config.seed=0,1,2",
            *(f"--set=config.{key}={value}" for key, value in fields.items()),
            "--workers=2",
        ]
    )
    running = [tmp_path / f"seed={seed}" / "checkpoints" for seed in (0, 1)]
    deadline = time.monotonic() + 300
    while not all(list(folder.glob("[0-9]*")) for folder in running):
        assert sweep.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    sweep.terminate()
    assert sweep.wait(30) == preemption.STATUS
    for folder in running:
        saved = max(int(entry.name) for entry in folder.glob("[0-9]*"))
        log = (folder.parent / "log.txt").read_text()
        assert f"saved {folder}/{saved}" in log
    assert not (tmp_path / "seed=2").exists()


def test_the_command_line_does_the_same():
    job = Job("x", "configs/sft.py:tiny", {"seed": 3, "model": "a b"}, Path("/w/x"))
    assert job.command() == (
        "python launch/train.py --config=configs/sft.py:tiny --workdir=/w/x "
        "--config.seed=3 '--config.model=a b'"
    )


def test_a_key_that_the_config_lacks_is_refused(tmp_path):
    with pytest.raises(KeyError, match="learning"):
        sft("job", tmp_path, learning=1.0).resolve()
