import signal
import subprocess
import sys

import jax.numpy as jnp
import pytest

from rlhf_jax.training import preemption
from rlhf_jax.training.checkpoints import Checkpoints

# A loop that never ends by itself, and one that computes for long outside of any.
PROGRAM = """
import sys, time
import jax.numpy as jnp
from rlhf_jax.training import preemption
from rlhf_jax.training.checkpoints import Checkpoints
preemption.install()
checkpoints = Checkpoints(sys.argv[1], keep=2)
if sys.argv[2] == "outside":
    print("ready", flush=True)
    while True:  # one long sleep could begin just after the signal, and not see it
        time.sleep(0.01)
for step in range(1, 10_000):
    time.sleep(0.01)
    if checkpoints.due(step, 0, 10_000):
        checkpoints.save(step, {"x": {"a": jnp.full(3, step)}}, {})
    if step == 3:
        print("ready", flush=True)
"""


@pytest.fixture
def start(tmp_path):
    def start(where):
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tmp_path), where],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        return process.wait(timeout=30)

    return start


def test_sigterm_in_a_loop_saves_the_step_and_leaves_with_status_75(start, tmp_path):
    assert start("loop") == preemption.STATUS == 75
    checkpoints = Checkpoints(tmp_path, keep=None)
    step = checkpoints.latest_step()
    assert step >= 3
    like = {"x": {"a": jnp.zeros(3, jnp.int32)}}
    assert checkpoints.restore(step, like)["x"]["a"].tolist() == [step] * 3
    checkpoints.close()


def test_who_only_reads_checkpoints_does_not_end_a_loop(tmp_path, monkeypatch):
    """A loop may load a model between two steps: a signal still has to wait."""
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert not checkpoints.due(1, 0, 9)
    Checkpoints(tmp_path, keep=None).close()
    monkeypatch.setattr(preemption, "_received", "")
    preemption._on_signal(signal.SIGTERM, None)
    assert checkpoints.due(2, 0, 9)
    with pytest.raises(preemption.Preempted, match=r"SIGTERM: saved .*/checkpoints/2"):
        checkpoints.save(2, {"x": {"a": jnp.ones(3)}}, {})
    preemption.wait_for_step(False)


def test_sigterm_outside_of_a_loop_leaves_at_once(start, tmp_path):
    assert start("outside") == 75
    assert not list((tmp_path / "checkpoints").iterdir())


CALLBACK = """
import os, signal, sys, time
from rlhf_jax.training import preemption

class Callback:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)  # the signal's handler raises here

preemption.install()
if sys.argv[1] == "told":
    preemption.tell()
Callback()
for _ in range(1000):
    time.sleep(0.01)
"""


@pytest.mark.parametrize("when", ["imports", "told"])
def test_a_signal_in_a_callback_is_not_lost(when):
    """Python drops what is raised there."""
    ended = subprocess.run([sys.executable, "-c", CALLBACK, when], timeout=60)
    assert ended.returncode == preemption.STATUS
