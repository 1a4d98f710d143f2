"""What a person sees while a stage runs: a bar on a terminal, log lines elsewhere."""

import sys
import time

from absl import logging
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

LOG_EVERY_SECONDS = 10.0


class ProgressBar:
    """Shows stage, step, speed, time left and the numbers that matter for the stage.

    Args:
        stage: its name.
        total: number of steps.
        start: steps done before (a resume).
        show: label -> metric name, for the two or three numbers shown.
    """

    def __init__(self, stage: str, total: int, start: int, show: dict[str, str]):
        self.stage, self.total, self.start, self.show = stage, total, start, show
        self._began = self._logged = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("[bold]{task.description:8}"),
                BarColumn(bar_width=10),  # all columns fit into 80 characters
                MofNCompleteColumn(),
                TextColumn("{task.fields[speed]}"),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[numbers]}"),
            )
            self._bar.start()
            self._task = self._bar.add_task(
                stage, total=total, completed=start, speed="", numbers=""
            )

    def update(self, step: int, metrics: dict[str, float]) -> None:
        """Show that `step` is done, with its metrics as floats."""
        if step <= self.start:
            return
        now = time.monotonic()
        speed = (step - self.start) / (now - self._began)
        numbers = "  ".join(
            f"{label} {metrics[name]:.3g}"
            for label, name in self.show.items()
            if name in metrics
        )
        if self._bar is not None:
            self._bar.update(
                self._task, completed=step, speed=_speed(speed), numbers=numbers
            )
        elif now - self._logged > LOG_EVERY_SECONDS or step == self.total:
            self._logged = now
            left = (self.total - step) / speed
            logging.info(
                "%s %d/%d  %s  %.0f s left  %s",
                self.stage, step, self.total, _speed(speed), left, numbers,
            )  # fmt: skip

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _speed(steps_per_second: float) -> str:
    if steps_per_second >= 1:
        return f"{steps_per_second:.1f} steps/s"
    return f"{1 / steps_per_second:.1f} s/step"
