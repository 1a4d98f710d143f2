"""Every way in which the processes of a run do not find each other, or lose one."""

import socket
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rlhf_jax.launching import peers
from rlhf_jax.training import preemption

ROOT = Path(__file__).parents[2]
SOON = 1.5  # seconds until those who do not come are missed


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def meet(port: int, *processes: tuple[int, int], host="localhost") -> list[str]:
    """Return the message that each (index, count) gets; "" when all is well."""
    deadline = time.monotonic() + SOON

    def process(index, count):
        try:
            if index == 0:
                found = peers._receive_all(port, count, deadline)
            else:
                found = [peers._report(host, port, count, index, deadline)]
        except ValueError as error:
            return str(error)
        return "" if len(found) == (count - 1 if index == 0 else 1) else "too few"

    with ThreadPoolExecutor() as threads:
        return list(threads.map(lambda given: process(*given), processes))


def test_all_processes_meet_in_any_order(port):
    assert meet(port, (2, 3), (0, 3), (1, 3)) == ["", "", ""]


def test_the_first_of_one_is_alone(port):
    assert meet(port, (0, 1)) == [""]


@pytest.mark.parametrize(
    ("processes", "message"),
    [
        ([(0, 2)], "Of 2 processes, 1 did not come to process 0 within"),
        ([(0, 4), (2, 4)], "Of 4 processes, 1, 3 did not come to process 0 within"),
        ([(0, 3), (1, 3), (1, 3)], "Two processes have --process_id=1"),
        ([(0, 2), (1, 3)], "Process 1 has --num_processes=3, not 2"),
    ],
)
def test_all_are_told_what_is_wrong(processes, message, port):
    told = meet(port, *processes)
    assert all(message in text for text in told), told


def test_nobody_answers(port):
    (told,) = meet(port, (1, 2))
    assert f"does not answer at --coordinator=localhost:{port} within" in told
    assert "refused" in told
    (told,) = meet(port, (1, 2), host="no-such-host.invalid")
    assert "start it there, or name its address" in told


def test_the_port_is_in_use(port):
    with socket.create_server(("", port)):
        told, _ = meet(port, (0, 2), (1, 2))
    assert f"cannot listen on port {port} (Address already in use)" in told


def test_strangers_do_not_disturb(port):
    def stranger():
        time.sleep(0.2)
        with socket.create_connection(("localhost", port)) as peer:
            peer.sendall(b"GET / HTTP/1.1\r\n\r\n")

    with ThreadPoolExecutor() as threads:
        threads.submit(stranger)
        time.sleep(0.1)
        first = threads.submit(meet, port, (0, 2))
        time.sleep(0.5)
        assert meet(port, (1, 2)) == [""]
        assert first.result() == [""]


@pytest.mark.parametrize("address", ["localhost", ":1", "host:x", "host:0", "h:70000"])
def test_an_address_that_is_none(address):
    with pytest.raises(ValueError, match="is not of the form ADDRESS:PORT"):
        peers.meet(address, 2, 0)


PROCESS = r"""
    import os, sys, time
    import numpy as np
    from jax.experimental import multihost_utils
    from ml_collections import ConfigDict
    from rlhf_jax import files
    from rlhf_jax.launching import processes
    from rlhf_jax.training.workdir import open_workdir

    address, index, what = sys.argv[1:]
    given = {"coordinator": address, "num_processes": 2, "process_id": int(index)}
    with processes.failing_at_once(), processes.missing_no_one():
        processes.join(given)
        multihost_utils.process_allgather(np.int32(1))
        os.write(1, b"joined\n")  # print is silent, but in process 0
        if what == "differ":
            open_workdir("run", ConfigDict({"seed": int(index)}))
        if what == "write":
            for _ in range(50):
                multihost_utils.process_allgather(np.int32(1))
                files.write_text("file.txt", index)
            what = "end"
        while what != "end":
            if what == "together":
                multihost_utils.process_allgather(np.int32(1))
            else:
                time.sleep(0.01)
"""


def start_two(port: int, what: str, folder: Path = ROOT) -> list[subprocess.Popen]:
    program = [sys.executable, "-c", textwrap.dedent(PROCESS), f"localhost:{port}"]
    return [
        subprocess.Popen(
            [*program, str(index), what],
            cwd=folder,
            env={"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in (0, 1)
    ]


@pytest.mark.parametrize("what", ["together", "alone"])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_lost_process_is_one_clear_line(victim, what, port):
    both = start_two(port, what)
    for process in both:
        while process.stdout.readline() != "joined\n":
            assert process.poll() is None
    both[victim].kill()
    _, said = both[1 - victim].communicate(timeout=60)
    both[victim].communicate()
    assert both[1 - victim].returncode == preemption.STATUS
    assert said.count("Another process of this run was lost") == 1
    assert "Traceback" not in said


def test_processes_that_end_together_miss_no_one(port):
    for process in start_two(port, "end"):
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said


def test_processes_with_different_configs_are_refused_in_all(port, tmp_path):
    for process in start_two(port, "differ", tmp_path):
        _, said = process.communicate(timeout=120)
        assert process.returncode == 1
        assert "Process 1 differs from process 0" in said
        assert "config.seed: 0 -> 1" in said
    assert not (tmp_path / "run").exists()


def test_a_file_that_all_processes_write_is_that_of_the_first(port, tmp_path):
    for process in start_two(port, "write", tmp_path):
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    assert (tmp_path / "file.txt").read_text() == "0"
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]
