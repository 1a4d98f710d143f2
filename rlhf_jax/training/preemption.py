"""SIGTERM, which preemptible machines send: save, and leave with a status of its own.

Between the steps of a training loop nothing is lost by leaving, so there it waits for
the end of the step and the checkpoint. Anywhere else the program leaves at once: what
it was doing starts again from what is on disk.
"""

import signal

from absl import logging

STATUS = 75  # EX_TEMPFAIL of sysexits.h: try again later

_asked = False
_in_loop = False


class Preempted(SystemExit):
    """The program ends because it was asked to; started again, it goes on."""

    def __init__(self, where: str):
        super().__init__(STATUS)
        self.where = where
        logging.warning("SIGTERM: %s. The same command goes on from there.", where)

    def __reduce__(self):
        return Preempted, (self.where,)


def install() -> None:
    """Treat SIGTERM as said above, in this process. A process that joins others gets
    JAX's own handler then, for they must agree on the step."""
    signal.signal(signal.SIGTERM, _on_sigterm)


def asked() -> bool:
    """Whether SIGTERM has come."""
    return _asked


def wait_for_step(wait: bool) -> None:
    """Say that a loop asks after every step, or that it is over."""
    global _in_loop
    _in_loop = wait


def _on_sigterm(*_) -> None:
    global _asked
    _asked = True
    if not _in_loop:
        raise Preempted("left at once")
