"""SIGTERM, which preemptible machines send, and Ctrl-C: save, and leave with a status
of its own.

Between the steps of a training loop nothing is lost by leaving, so there it waits for
the end of the step and the checkpoint. Anywhere else the program leaves at once: what
it was doing starts again from what is on disk. A second Ctrl-C never waits.
"""

import contextlib
import os
import signal
from collections.abc import Iterator

STATUS = 75  # EX_TEMPFAIL of sysexits.h: try again later
AT_ONCE = 130  # as a shell says of a program that Ctrl-C ended
NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}
NOTICE = "Ctrl-C: ends when this step is done and saved. Once more: ends at once.\n"

_asked = ""  # one of NAMES
_is_told = False
_in_loop = False
_leaving = False


class Preempted(SystemExit):
    """The program ends because it was asked to; started again, it goes on.

    Args:
        where: it ends, in words.
        signal: by which it was asked, one of NAMES; None: the last one.
    """

    def __init__(self, where: str, signal: str | None = None):
        super().__init__(STATUS)
        self.where, self.signal = where, _asked if signal is None else signal

    def __str__(self) -> str:
        return (
            f"{self.signal or 'SIGTERM'}: {self.where}. The same command goes on from "
            "what is on disk."
        )

    def __reduce__(self):
        return Preempted, (self.where, self.signal)


def install() -> None:
    """Treat SIGTERM and Ctrl-C as said above, in this process. A process that joins
    others gets JAX's own handler of SIGTERM then, for they must agree on the step; see
    `join_others`. A signal that is ignored stays so: `nohup`, or `&` in a script."""
    for number in NAMES:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _on_signal)


def join_others() -> None:
    """Say that SIGTERM is JAX's now: Ctrl-C becomes one."""
    if signal.getsignal(signal.SIGINT) == _on_signal:
        signal.signal(signal.SIGINT, _pass_on)


def tell() -> None:
    """Say that from now on the catcher of `Preempted` tells of it, when all is saved.
    Until then, while a command imports, nobody else does."""
    global _is_told
    _is_told = True


def asked() -> bool:
    """Whether SIGTERM or Ctrl-C has come."""
    return bool(_asked)


def wait_for_step(wait: bool) -> None:
    """Say that a loop asks after every step, or that it is over."""
    global _in_loop
    _in_loop = wait


@contextlib.contextmanager
def leaving() -> Iterator[None]:
    """Say that the program, which ends, finishes what it was saving. Where an error
    ends it, a signal ends it at once."""
    global _in_loop, _leaving
    _in_loop, _leaving = False, True
    try:
        yield
    finally:
        _leaving = False


def _on_signal(number: int, _) -> None:
    global _asked
    if (_asked and number == signal.SIGINT) or (_leaving and not _asked):
        _leave_at_once(number)
    if not _asked:
        _asked = NAMES[number]
        if _in_loop and number == signal.SIGINT:
            os.write(2, NOTICE.encode())  # a signal's handler must not log
    if not (_in_loop or _leaving):
        end = Preempted("left at once")
        if not _is_told:
            os.write(2, f"{end}\n".encode())
        raise end


def _pass_on(number: int, _) -> None:
    global _asked
    if _asked:
        _leave_at_once(number)
    _asked = NAMES[number]
    os.write(2, NOTICE.encode())
    os.kill(os.getpid(), signal.SIGTERM)


def _leave_at_once(number: int) -> None:
    show_cursor = "\x1b[?25h" if os.isatty(2) else ""  # a progress bar has hidden it
    os.write(2, f"{show_cursor}{NAMES[number]}: left at once.\n".encode())
    os._exit(AT_ONCE if number == signal.SIGINT else STATUS)
