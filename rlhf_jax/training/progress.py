"""The progress of a stage: a bar on a terminal, log lines elsewhere."""

import sys
import time

from absl import logging
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

LOG_EVERY_SECONDS = 10.0


class ProgressBar:
    """A display of stage, step, speed, time left and the main metrics of the stage.

    The metrics of a step arrive while the next step is computed (see `metrics.Writer`),
    so `update` runs one step behind; leaving the `with` block shows the last step.

    Args:
        stage: the name of the stage.
        total: the number of steps.
        start: the number of steps done before (a resume).
        show: label -> metric name, for the two or three metrics shown.
    """

    def __init__(self, stage: str, total: int, start: int, show: dict[str, str]):
        self.stage, self.total, self.start, self.show = stage, total, start, show
        self._began = self._logged = time.monotonic()
        self._step: int | None = None  # the step whose metrics were shown last
        self._numbers = ""
        self._bar = None
        if start:
            logging.info("%s goes on from step %d of %d.", stage, start, total)
        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("[bold]{task.description:8}"),
                BarColumn(bar_width=10),  # all columns fit into 80 characters
                MofNCompleteColumn(),
                TextColumn("{task.fields[speed]}"),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[numbers]}"),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task(
                stage, total=total, completed=start, speed="", numbers=""
            )

    def update(self, step: int, metrics: dict[str, float]) -> None:
        """Show `step` as done, with its metrics as floats."""
        self._step = step
        if step > self.start:
            self._numbers = "  ".join(
                f"{label} {metrics[name]:.3g}"
                for label, name in self.show.items()
                if name in metrics
            )
            self._show(step)

    def close(self) -> None:
        """Show the step after the last `update` as done."""
        if self._step is not None:
            self._show(self._step + 1, is_last=True)

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, error, *_) -> None:
        if error is None:
            self.close()
        if self._bar is not None:
            self._bar.stop()

    def _show(self, step: int, *, is_last: bool = False) -> None:
        now = time.monotonic()
        speed = (step - self.start) / max(now - self._began, 1e-9)
        if self._bar is not None:
            self._bar.update(
                self._task, completed=step, speed=_speed(speed), numbers=self._numbers
            )
        elif is_last or now - self._logged > LOG_EVERY_SECONDS:
            self._logged = now
            parts = [f"{self.stage} {step}/{self.total}", _speed(speed)]
            if speed and not is_last:
                parts.append(f"{(self.total - step) / speed:.0f} s left")
            logging.info("%s", "  ".join(filter(None, [*parts, self._numbers])))


def _speed(steps_per_second: float) -> str:
    if steps_per_second >= 1:
        return f"{steps_per_second:.1f} steps/s"
    return f"{1 / steps_per_second:.1f} s/step" if steps_per_second else ""
