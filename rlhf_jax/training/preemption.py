"""SIGTERM, which preemptible machines send, and Ctrl-C: save, and exit with a status of
their own.

In a training loop the program finishes the step, saves a checkpoint and exits, so that
nothing is lost. Anywhere else it exits at once, and a restart continues from the files
on disk. A second Ctrl-C always exits at once.

The state of this module belongs to the process: there is one signal handler.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

STATUS = 75  # EX_TEMPFAIL of sysexits.h: try again later
AT_ONCE = 130  # a shell's status of a program ended by Ctrl-C
NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}
AGAIN = 0.1  # seconds after which a signal that Python dropped is sent again
NOTICE = "Ctrl-C: ends when this step is done and saved. Once more: ends at once.\n"

_received = ""  # one of NAMES
_is_told = False
_in_loop = False
_leaving = False


class Preempted(SystemExit):
    """A signal ends the program; the same command resumes it.

    Args:
        where: the place at which the program ends, in words.
        signal: the signal, one of NAMES; None takes the last one.
    """

    def __init__(self, where: str, signal: str | None = None):
        super().__init__(STATUS)
        self.where, self.signal = where, _received if signal is None else signal

    def __str__(self) -> str:
        return (
            f"{self.signal or 'SIGTERM'}: {self.where}. The same command goes on from "
            "what is on disk."
        )

    def __reduce__(self):
        return Preempted, (self.where, self.signal)


def install() -> None:
    """Handle SIGTERM and Ctrl-C in this process, as the module's text describes. A
    process that joins others gets JAX's own handler of SIGTERM at that point, because
    the processes must agree on the step; see `join_others`. A signal that is ignored
    stays ignored: `nohup`, or `&` in a script."""
    for number in NAMES:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _on_signal)
    sys.unraisablehook = _on_dropped


def join_others() -> None:
    """Leave SIGTERM to JAX from now on; Ctrl-C then sends SIGTERM."""
    if signal.getsignal(signal.SIGINT) == _on_signal:
        signal.signal(signal.SIGINT, _pass_on)


def tell() -> None:
    """Leave the message about a signal to the catcher of `Preempted`, which reports it
    when all is saved. Before this call, while a command imports its modules, the signal
    handler reports it."""
    global _is_told
    _is_told = True


def received() -> bool:
    """Return True if SIGTERM or Ctrl-C has arrived."""
    return bool(_received)


def wait_for_step(wait: bool) -> None:
    """Declare that a loop checks for signals after every step, or that it has ended."""
    global _in_loop
    _in_loop = wait


@contextlib.contextmanager
def leaving() -> Iterator[None]:
    """Declare that the program ends and finishes its save. If an error ends the
    program, a signal then ends it at once."""
    global _in_loop, _leaving
    _in_loop, _leaving = False, True
    try:
        yield
    finally:
        _leaving = False


def _on_signal(number: int, _) -> None:
    global _received
    if (_received and number == signal.SIGINT) or (_leaving and not _received):
        _leave_at_once(number)
    if not _received:
        _received = NAMES[number]
        if _in_loop and number == signal.SIGINT:
            os.write(2, NOTICE.encode())  # a signal's handler must not log
    if _in_loop or _leaving:
        return
    end = Preempted("left at once")
    if not _is_told:  # imports: there is nothing to finish
        os.write(2, f"{end}\n".encode())
        os._exit(STATUS)
    raise end


def _on_dropped(dropped) -> None:
    """Python drops what is raised in a callback, as one of garbage collection: where it
    was a signal's, the signal is sent again."""
    if isinstance(dropped.exc_value, Preempted):
        send = threading.Timer(AGAIN, os.kill, (os.getpid(), signal.SIGTERM))
        send.daemon = True
        send.start()
    else:
        sys.__unraisablehook__(dropped)


def _pass_on(number: int, _) -> None:
    global _received
    if _received:
        _leave_at_once(number)
    _received = NAMES[number]
    os.write(2, NOTICE.encode())
    os.kill(os.getpid(), signal.SIGTERM)


def _leave_at_once(number: int) -> None:
    show_cursor = "\x1b[?25h" if os.isatty(2) else ""  # a progress bar has hidden it
    os.write(2, f"{show_cursor}{NAMES[number]}: left at once.\n".encode())
    os._exit(AT_ONCE if number == signal.SIGINT else STATUS)
