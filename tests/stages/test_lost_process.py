"""One of two processes is killed: the other ends by itself and says why, and started
again they make the run that nobody killed."""

import time

import pytest

from rlhf_jax.training import preemption
from rlhf_jax.training.metrics import MEASURED, read_metrics
from tests.processes import SMALL, finish, start_two

MINUTE = 60


def numbers(workdir) -> list[dict]:
    return [
        {k: x for k, x in line.items() if not k.startswith(MEASURED)}
        for line in read_metrics(workdir)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_the_other_process_ends_within_a_minute_and_both_resume(
    victim, data_folder, tmp_path
):
    config = SMALL | {"data.path": data_folder, "total_steps": 4, "save_every": 1}
    whole, workdir = tmp_path / "whole", tmp_path / "run"
    finish(*start_two(config, whole))

    both = start_two(config, workdir)
    while len(read_metrics(workdir)) < 2:
        assert all(process.poll() is None for process in both)
        time.sleep(0.01)
    both[victim].kill()  # it is in the middle of an iteration
    killed = time.time()
    other = both[1 - victim]
    said, _ = other.communicate(timeout=MINUTE)
    print(f"{time.time() - killed:.1f} s, status {other.returncode}: {said[-2000:]}")
    assert "Another process of this run was lost" in said
    assert other.returncode == preemption.STATUS
    assert len(read_metrics(workdir)) < 4

    finish(*start_two(config, workdir))
    assert numbers(workdir) == numbers(whole)
    a, b = ((folder / "summary.json").read_text() for folder in (whole, workdir))
    assert a == b
