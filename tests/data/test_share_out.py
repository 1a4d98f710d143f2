"""Processes share out work, and all get all of it. Threads stand for them here;
tests/stages/test_processes.py has real ones."""

import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from rlhf_jax.data.share_out import share_out


@pytest.fixture
def in_processes(monkeypatch):
    """Calls a function in three processes, and gives what each returns or raises."""
    count, this = 3, threading.local()
    barrier, sent = threading.Barrier(count, timeout=10), [None] * count

    def gather(x):
        sent[this.index] = x
        barrier.wait()
        stacked = np.stack(sent)  # fails where shapes differ, as jax does
        barrier.wait()
        return stacked

    monkeypatch.setattr(jax, "process_count", lambda: count)
    monkeypatch.setattr(jax, "process_index", lambda: this.index)
    monkeypatch.setattr(multihost_utils, "process_allgather", gather)

    def call(function):
        def process(index):
            this.index = index
            try:
                return function(index)
            except ValueError as error:
                return error

        with ThreadPoolExecutor(count) as threads:
            return list(threads.map(process, range(count)))

    return call


@pytest.mark.parametrize("length", [0, 1, 2, 3, 7])
def test_each_process_does_its_share_and_gets_everything(in_processes, length):
    done = []

    def run(index):
        return share_out(lambda x: done.append((index, x)) or [x] * x, range(length))

    expected = [[x] * x for x in range(length)]
    assert in_processes(run) == [expected] * 3
    assert sorted(done) == sorted((x % 3, x) for x in range(length))


def test_an_error_of_one_process_is_that_of_all(in_processes):
    def run(index):
        return share_out(lambda x: 1 // x if index != 2 else int("line 5"), [1, 2, 3])

    errors = in_processes(run)
    assert [str(e) for e in errors] == [str(errors[2])] * 3
    assert "line 5" in str(errors[0])


def test_a_process_alone_does_all():
    assert share_out(str, [1, 2]) == ["1", "2"]
