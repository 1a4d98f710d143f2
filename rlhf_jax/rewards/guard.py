"""Calls of reward functions that may fail: in a thread, with a time limit.

A function that raises an error, hangs, or returns anything but one finite number for
each response is called again on each row alone, to name the prompts at fault.
"""

import contextlib
import copy
import numbers
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import wait
from typing import Any, NamedTuple, TextIO

import numpy as np
from absl import logging

from rlhf_jax.data.in_threads import started
from rlhf_jax.data.records import Prompt, Response
from rlhf_jax.rewards.own_file import line_in
from rlhf_jax.rewards.rows import Function

LARGEST = float(np.finfo(np.float32).max)
MOST_HANGS = 3  # rows of a batch that may hang before the others are left untried


class Reward(NamedTuple):
    """A function with its name and place; `seconds` is its time limit for a batch, None
    for a function with limits of its own."""

    name: str
    place: str
    file: str
    function: Function
    seconds: float | None


class _Failure(Exception):
    """A call has no usable result."""


class _Hang(_Failure):
    """A call took longer than its time limit."""


def values_of(
    reward: Reward,
    prompts: Sequence[Prompt],
    responses: Sequence[Response],
    *,
    first_only: bool,
) -> tuple[np.ndarray, dict[int, str]]:
    """Return the rewards of a batch, float32 [B], and the faults: row -> what is wrong.
    The reward of a row with a fault is 0.

    Args:
        first_only: True stops at the first row at fault; the rewards are then not to be
            used.
    """
    count = len(prompts)
    try:
        return _checked(_call(reward, prompts, responses), count)
    except _Failure as failure:
        whole = str(failure)
    values, faults, hangs = np.zeros(count, np.float32), {}, 0
    if count == 1 or reward.seconds is None:
        return values, dict.fromkeys(range(count), whole)
    for i in range(count):
        if hangs == MOST_HANGS:
            faults[i] = f"was not called, since {hangs} rows before it gave no result"
            continue
        row = slice(i, i + 1)
        try:
            called = _call(reward, prompts[row], responses[row])
            values[row], fault = _checked(called, 1)
            if fault:
                faults[i] = fault[0]
        except _Failure as failure:
            hangs += isinstance(failure, _Hang)
            faults[i] = str(failure)
        if faults and first_only:
            return values, faults
    if not faults:  # the batch fails, and none of its rows
        faults = dict.fromkeys(range(count), f"{whole}, on a batch of {count} rows")
        values = np.zeros(count, np.float32)
    return values, faults


def _call(
    reward: Reward, prompts: Sequence[Prompt], responses: Sequence[Response]
) -> Any:
    """Return what the function returns for copies of the records.

    Raises:
        _Failure: the function raised an error, or took too long.
    """
    given = copy.deepcopy((list(prompts), list(responses)))

    def call() -> Any:
        with _noting_prints(reward):
            return reward.function(*given)

    future, thread = started(call)
    wait([future], reward.seconds)
    if not future.done():
        raise _Hang(
            f"gave no result within reward_timeout={reward.seconds:g} seconds"
            f"{_place_of(thread, reward.file)}"
        )
    if (error := future.exception()) is not None:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise _Failure(f"raised {said}{line_in(error, reward.file)}")
    return future.result()


def _place_of(thread: threading.Thread, file: str) -> str:
    """Return the line that a thread has reached, in the user's file if it is there."""
    frame = sys._current_frames().get(thread.ident or 0)
    if frame is None:
        return ""
    stack = traceback.extract_stack(frame)
    own = [x for x in stack if x.filename.endswith(file)] if file else []
    last = (own or stack)[-1]
    return f", and is at line {last.lineno} of {file if own else last.filename}"


def _checked(value: Any, count: int) -> tuple[np.ndarray, dict[int, str]]:
    """Return the rewards and faults of a returned value.

    Raises:
        _Failure: it is not a list or array of `count` numbers.
    """
    kind = type(value).__name__
    if isinstance(value, str | bytes | dict | set) or not hasattr(value, "__len__"):
        raise _Failure(f"returned a {kind} instead of a list of {count} numbers")
    if len(value) != count:
        raise _Failure(f"returned {len(value)} numbers for {count} responses")
    values, faults = np.zeros(count, np.float32), {}
    for i, item in enumerate(value):
        try:
            item = item.item() if hasattr(item, "item") else item
            number = float(item) if isinstance(item, numbers.Real) else None
        except Exception:  # an array of several numbers, a number beyond float64
            number = None
        if number is None:
            faults[i] = f"returned {str(value[i])[:60]!r} instead of a number"
        elif not abs(number) <= LARGEST:
            faults[i] = f"returned {number}, which is not finite in float32"
        else:
            values[i] = number
    return values, faults


class _Prints:
    """The standard output while functions run: texts of their threads are kept out of
    the terminal, and the first text of each function is logged."""

    def __init__(self, usual: TextIO):
        self._usual = usual
        self._texts: dict[int, list[str]] = {}

    def begin(self) -> None:
        self._texts[threading.get_ident()] = []

    def end(self) -> str:
        return "".join(self._texts.pop(threading.get_ident(), []))

    def write(self, text: str) -> int:
        own = self._texts.get(threading.get_ident())
        if own is None:
            return self._usual.write(text)
        own.append(text)
        return len(text)

    def flush(self) -> None:
        self._usual.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._usual, name)


_told: set[str] = set()  # places of functions whose prints have been logged


@contextlib.contextmanager
def keeping_prints() -> Iterator[None]:
    """Keep what functions print out of the terminal."""
    with contextlib.redirect_stdout(_Prints(sys.stdout)):
        yield


@contextlib.contextmanager
def _noting_prints(reward: Reward) -> Iterator[None]:
    out = sys.stdout
    if not isinstance(out, _Prints):
        yield
        return
    out.begin()
    try:
        yield
    finally:
        text = out.end()
        if text.strip() and reward.place not in _told:
            _told.add(reward.place)
            logging.warning(
                "The reward %s prints, which is shown once and then left out: %r",
                reward.place,
                text[:200],
            )
