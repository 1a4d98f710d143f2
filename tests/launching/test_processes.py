"""Flags that do not say where the other processes are."""

import threading

import pytest

from rlhf_jax.launching import peers, processes
from rlhf_jax.training import preemption


def test_all_three_flags_or_none():
    with pytest.raises(ValueError, match="Without --coordinator and --process_id"):
        processes.join({"coordinator": None, "num_processes": 2, "process_id": None})


def test_a_process_that_is_none_of_them():
    flags = {"coordinator": "localhost:1", "num_processes": 2, "process_id": 2}
    with pytest.raises(ValueError, match="--process_id=2: processes count from 0 to 1"):
        processes.join(flags)


def test_one_machine_alone_joins_nothing(monkeypatch):
    monkeypatch.setattr(processes.jax.distributed, "initialize", pytest.fail)
    monkeypatch.setattr(processes, "is_cluster", lambda: False)
    processes.join({"coordinator": None, "num_processes": None, "process_id": None})


def test_tasks_of_slurm_join_by_themselves(monkeypatch):
    joined = []
    monkeypatch.setattr(
        processes.jax.distributed, "initialize", lambda **more: joined.append(more)
    )
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    processes.join({"coordinator": None, "num_processes": None, "process_id": None})
    assert joined == [{"heartbeat_timeout_seconds": 40}]


@pytest.fixture
def one_of_two(monkeypatch):
    """As if this were one of two processes; the statuses that it ends with."""
    statuses = []
    monkeypatch.setattr(processes.jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(peers.os, "_exit", statuses.append)
    monkeypatch.setattr(peers, "_leaving", threading.Lock())
    return statuses


@pytest.mark.parametrize("kind", [ValueError, processes.jax.errors.JaxRuntimeError])
def test_a_process_whose_peer_is_gone_says_so_and_ends_at_once(
    kind, one_of_two, capsys
):
    with processes.missing_no_one():
        raise kind("UNKNOWN: Gloo AllGather failed: Connection reset by peer\nat")
    assert one_of_two == [75]
    said = capsys.readouterr().err
    assert said.startswith("Another process of this run was lost (UNKNOWN: Gloo AllG")
    assert "by peer). Start the same command in all of them again" in said


@pytest.mark.parametrize(
    "error",
    [ValueError("of ours"), processes.jax.errors.JaxRuntimeError("out of memory")],
)
def test_other_errors_are_not_taken_for_a_peer_that_is_gone(error, one_of_two):
    with pytest.raises(type(error)), processes.missing_no_one():
        raise error
    assert one_of_two == []


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ZeroDivisionError("of ours"), 1, "ZeroDivisionError: of ours"),
        (SystemExit(1), 1, ""),  # a user's mistake, whose message stands already
    ],
)
def test_a_process_that_fails_does_not_wait_for_the_others(
    error, status, said, one_of_two, capsys
):
    with processes.failing_at_once():
        raise error
    assert one_of_two == [status]
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "end", [SystemExit(None), SystemExit(0), preemption.Preempted("")]
)
def test_processes_that_end_together_take_leave(end, one_of_two):
    with pytest.raises(SystemExit), processes.failing_at_once():
        raise end
    assert one_of_two == []


def test_a_process_alone_fails_as_ever(monkeypatch):
    monkeypatch.setattr(peers.os, "_exit", pytest.fail)
    with pytest.raises(ZeroDivisionError), processes.failing_at_once():
        raise ZeroDivisionError
