"""Calls at the same time, in threads."""

import threading
from collections.abc import Callable, Sequence


def in_threads(calls: Sequence[Callable]) -> list:
    """Return the results of all calls, each made in a thread of its own; raise the
    error of the first call that failed, after all have ended. The threads are daemons:
    Ctrl-C and SIGTERM end the process at once."""
    results: list = [None] * len(calls)

    def run(i: int) -> None:
        try:
            results[i] = calls[i](), None
        except Exception as error:
            results[i] = None, error

    threads = [
        threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(calls))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _, error in results:
        if error is not None:
            raise error
    return [result for result, _ in results]
