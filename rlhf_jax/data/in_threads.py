"""Calls in daemon threads: Ctrl-C and SIGTERM end the process without waiting."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import TypeVar

T = TypeVar("T")


def started(call: Callable[[], T]) -> tuple[Future[T], threading.Thread]:
    """Start a call in a thread of its own; return its future, and the thread."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # SystemExit too
            future.set_exception(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return future, thread


def in_threads(calls: Sequence[Callable]) -> list:
    """Return the results of all calls, each made in a thread of its own; raise the
    error of the first call that failed, after all have ended."""
    futures = [started(call)[0] for call in calls]
    wait(futures)
    return [future.result() for future in futures]
