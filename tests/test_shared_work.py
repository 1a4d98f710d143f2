"""Processes share work, and all get all of it. Threads stand for them here;
tests/stages/test_processes.py has real ones."""

import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from rlhf_jax.shared_work import first_does, first_makes, is_first, share_out


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

    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(jax, "process_count", lambda: count)
    monkeypatch.setattr(jax, "process_index", lambda: this.index)
    monkeypatch.setattr(multihost_utils, "process_allgather", gather)

    def call(function):
        def process(index):
            this.index = index
            try:
                return function(index)
            except (ValueError, OSError) as error:
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


@pytest.mark.parametrize("kind", [ValueError, FileNotFoundError])
def test_an_error_of_one_process_reaches_all(kind, in_processes):
    def fail(x):
        raise kind("line 5")

    def run(index):
        return share_out(fail if index == 2 else str, [1, 2, 3])

    errors = in_processes(run)
    assert [type(e) for e in errors] == [ValueError, ValueError, kind]
    assert [str(e) for e in errors] == ["Process 2: line 5"] * 2 + ["line 5"]


def test_the_first_process_does_it_for_all(in_processes):
    done = []

    def run(index):
        return first_does(lambda x: done.append(index) or [x, index], 7)

    assert in_processes(run) == [[7, 0]] * 3
    assert done == [0]


def test_an_error_of_the_first_process_reaches_all(in_processes):
    errors = in_processes(lambda index: first_does(int, "x"))
    assert all(isinstance(error, ValueError) for error in errors)
    assert all("invalid literal" in str(error) for error in errors)


def test_the_first_process_makes_what_the_others_then_find(in_processes):
    made = []

    @first_makes
    def make(name):
        made.append(is_first())
        return (name, list(made))

    results = in_processes(lambda index: make("file"))
    assert results[0] == ("file", [True])
    assert made == [True, False, False]


def test_what_the_first_process_does_for_all_may_ask_for_the_same(in_processes):
    def make(x):
        return [first_does(str, x), share_out(str, [x, x + 1])]

    results = in_processes(lambda index: (first_does(make, 7), share_out(str, [1])))
    assert results == [(["7", ["7", "8"]], ["1"])] * 3


def test_a_process_alone_does_all():
    assert share_out(str, [1, 2]) == ["1", "2"]
    assert first_does(str, 1) == "1"
    assert first_makes(str)(1) == "1"
    assert is_first()
