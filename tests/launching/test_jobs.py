"""Jobs run real stages in real processes, here the smallest that there are."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rlhf_jax.launching.jobs import KILLED, Job, run_jobs
from rlhf_jax.training import lock, preemption

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


ENDLESS = {"epochs": 5000, "save_every": 5}


def start_sweep(folder: Path, *more: str) -> subprocess.Popen:
    """A sweep over seeds whose runs do not end by themselves."""
    return subprocess.Popen(
        [
            sys.executable,
            ROOT / "launch/sweep.py",
            f"--config={ROOT}/configs/sft.py:tiny",
            f"--workdir={folder}",
            *(f"--set=config.{key}={value}" for key, value in (TINY | ENDLESS).items()),
            *more,
        ]
    )


def wait_until(happened) -> None:
    deadline = time.monotonic() + 300
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def saves(run: Path) -> bool:
    return bool(list((run / "checkpoints").glob("[0-9]*")))


def process_of(run: Path) -> int:
    """The process at work in a run's folder."""
    return json.loads((run / ".lock").read_text())["pid"]


def is_held(run: Path) -> bool:
    """Return True if a live process holds the run's folder."""
    try:
        lock.acquire(run)
    except ValueError:
        return True
    lock.release(run)
    return False


def test_sigterm_to_a_sweep_makes_its_runs_save_and_starts_no_other(tmp_path):
    sweep = start_sweep(tmp_path, "--grid=config.seed=0,1,2", "--workers_per_device=2")
    running = [tmp_path / f"seed={seed}" for seed in (0, 1)]
    wait_until(lambda: all(map(saves, running)))
    assert sweep.poll() is None
    sweep.terminate()
    assert sweep.wait(30) == preemption.STATUS
    for run in running:
        folder = run / "checkpoints"
        saved = max(int(entry.name) for entry in folder.glob("[0-9]*"))
        assert f"saved {folder}/{saved}" in (run / "log.txt").read_text()
    assert not (tmp_path / "seed=2").exists()


def test_a_sweep_that_is_killed_takes_its_workers_along(tmp_path):
    sweep = start_sweep(tmp_path, "--grid=config.seed=0")
    run = tmp_path / "seed=0"
    wait_until(lambda: saves(run))
    assert process_of(run) != sweep.pid and is_held(run)
    sweep.kill()
    sweep.wait()
    wait_until(lambda: not is_held(run))
    assert "saved" in (run / "log.txt").read_text()  # it was given the time


def test_a_worker_that_is_killed_fails_its_job_alone(tmp_path):
    long, after = sft("long", tmp_path, **ENDLESS), sft("after", tmp_path, ("long",))
    jobs = [long, after, sft("short", tmp_path), sft("next", tmp_path)]

    def kill():
        wait_until(lambda: saves(long.workdir))
        os.kill(process_of(long.workdir), signal.SIGKILL)

    with ThreadPoolExecutor() as threads:
        killed = threads.submit(kill)
        failed = run_jobs(jobs, workers=1)
        killed.result()
    assert failed == {"long": KILLED, "after": "needs long"}
    assert all(
        (tmp_path / name / "summary.json").exists() for name in ("short", "next")
    )


def test_the_command_line_does_the_same():
    job = Job("x", "configs/sft.py:tiny", {"seed": 3, "model": "a b"}, Path("/w/x"))
    assert job.command() == (
        "python launch/train.py --config=configs/sft.py:tiny --workdir=/w/x "
        "--config.seed=3 '--config.model=a b'"
    )


def test_a_key_that_the_config_lacks_is_refused(tmp_path):
    with pytest.raises(KeyError, match="learning"):
        sft("job", tmp_path, learning=1.0).resolve()
