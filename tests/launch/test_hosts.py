"""Flags that do not say where the other processes are."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "launch"))
import hosts


def test_all_three_flags_or_none():
    with pytest.raises(ValueError, match="Without --coordinator and --process_id"):
        hosts.join({"coordinator": None, "num_processes": 2, "process_id": None})


def test_a_process_that_is_none_of_them():
    flags = {"coordinator": "localhost:1", "num_processes": 2, "process_id": 2}
    with pytest.raises(ValueError, match="--process_id=2: processes count from 0 to 1"):
        hosts.join(flags)


def test_one_machine_alone_joins_nothing(monkeypatch):
    monkeypatch.setattr(hosts.jax.distributed, "initialize", pytest.fail)
    monkeypatch.setattr(hosts, "is_cluster", lambda: False)
    hosts.join({"coordinator": None, "num_processes": None, "process_id": None})


def test_tasks_of_slurm_join_by_themselves(monkeypatch):
    joined = []
    monkeypatch.setattr(hosts.jax.distributed, "initialize", lambda: joined.append(1))
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    hosts.join({"coordinator": None, "num_processes": None, "process_id": None})
    assert joined
