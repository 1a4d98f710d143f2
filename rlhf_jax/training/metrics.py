"""The metrics of a run: exact means, and the places that metrics are written to.

Every reported number is a `Mean`: a total and a count that are added over
microbatches and batches, and divided once, when written.
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from rlhf_jax.files import naming, writing_whole
from rlhf_jax.parallel.sharding import fetch
from rlhf_jax.training import suspects
from rlhf_jax.training.logger import Logger

EVENTS_EVERY_SECONDS = 30.0  # seconds between two flushes of TensorBoard's file
# Metrics that depend on the machine; packed rows are a multiple of its devices.
MEASURED = ("time/", "tokens_per_second", "data/real_tokens")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean whose parts can be added: float32 total and count, both scalars."""

    total: jax.Array
    count: jax.Array

    @classmethod
    def of(cls, values, mask=None) -> "Mean":
        """Return the mean of `values` where `mask` is True (everywhere when None)."""
        values = jnp.asarray(values, jnp.float32)
        if mask is None:
            return cls(values.sum(), jnp.float32(values.size))
        total = jnp.where(mask, values, 0.0).sum()
        return cls(total, jnp.broadcast_to(mask, values.shape).sum(dtype=jnp.float32))

    def __add__(self, other: "Mean") -> "Mean":
        return Mean(self.total + other.total, self.count + other.count)

    def value(self) -> float:
        """The mean as a Python number; NaN with a count of 0."""
        count = float(self.count)
        return float(self.total) / count if count else float("nan")


@dataclasses.dataclass(frozen=True)
class Rate:
    """A count of one step, reported per second. The `Writer` divides the count by the
    time between its fetches of two steps' metrics, because a step that is dispatched to
    the device has not been computed yet."""

    count: jax.Array | float


class Stopwatch:
    """A watch that measures the seconds since its last reading."""

    def __init__(self):
        self._last = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        self._last, seconds = now, now - self._last
        return seconds


def to_floats(metrics: dict) -> dict[str, float]:
    """Fetch a dict of `Mean`s and scalars in one transfer."""
    fetched = jax.device_get(metrics)
    return {
        name: x.value() if isinstance(x, Mean) else float(x)
        for name, x in fetched.items()
    }


class NonFiniteError(RuntimeError):
    """Too many updates in a row were not finite."""


class Writer:
    """The writer of a run's metrics: `metrics.jsonl`, TensorBoard, `samples.jsonl`, and
    a logger if one is named.

    `write` returns the metrics of the *previous* step: fetching them while the device
    computes the next step keeps the device busy. On a resume from `step`, lines of
    later steps are dropped first, so that an interrupted run leaves the same file as an
    uninterrupted one. Only process 0 writes.

    Args:
        workdir: the run's folder.
        step: the number of steps done before.
        max_skipped: the number of non-finite updates in a row that stops the run.
        spike_zscore: the number of standard deviations above the mean of the last
            losses from which a loss is flagged as "spike/NAME"; 0 flags none.
        logger: the name of a `Logger`; "" is none.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        step: int,
        max_skipped: int,
        spike_zscore: float,
        logger: str = "",
    ):
        self.workdir = Path(workdir)
        self.max_skipped = max_skipped
        self.active = jax.process_index() == 0

        def is_past(saved: int) -> bool:  # what precedes step 1 is written again
            return saved <= step and step > 0

        if self.active:
            self.workdir.mkdir(parents=True, exist_ok=True)
            for name in ("metrics.jsonl", "samples.jsonl"):
                _keep_lines(self.workdir / name, is_past)
            self._events = _Events(self.workdir / "events", step)
            self._logger = Logger(logger, self.workdir) if logger else None
        self._step, self._pending, self._batch = step, {}, None
        self._fetched = time.perf_counter()
        self._numbers: dict[str, float] = {}
        self._losses = suspects.Losses(spike_zscore)
        for line in read_metrics(self.workdir):
            if is_past(line["step"]):  # process 0 may not have dropped later steps yet
                self._numbers = {k: _number(x) for k, x in line.items() if k != "step"}
                self._losses.add(self._numbers)

    def write(
        self, step: int, metrics: dict, batch: dict | None = None
    ) -> tuple[int, dict[str, float]]:
        """Add metrics of `step` (1 is the first update); all calls for one step make
        one line. Return the last step written, and its metrics.

        Args:
            batch: the training data of the step, name -> pytree of arrays, which is
                saved where a metric is suspect.

        Raises:
            NonFiniteError: `max_skipped` updates in a row were not finite.
        """
        if step != self._step:
            self.flush()
            self._step = step
        self._pending |= metrics
        self._batch = self._batch if batch is None else batch
        return step - 1, self._numbers

    def flush(self) -> dict[str, float]:
        """Fetch and write the pending metrics; return them."""
        if not self._pending:
            return self._numbers
        self._numbers, self._pending = self._fetch(self._pending), {}
        self._numbers |= self._losses.add(self._numbers)
        if self.active:
            line = {k: _json_number(v) for k, v in self._numbers.items()}
            _append_line(self.workdir / "metrics.jsonl", {"step": self._step} | line)
            self._events.add(self._step, self._numbers)
            if self._logger is not None:
                self._logger.add(self._step, self._numbers)
        self._keep_suspect()
        self._batch = None
        skipped = self._numbers.get("optim/skipped", 0)
        if skipped >= self.max_skipped:
            losses = {k: v for k, v in self._numbers.items() if k.startswith("loss")}
            raise NonFiniteError(
                f"Step {self._step} of {self.workdir}: the gradient was not finite "
                f"{skipped:.0f} times in a row; such gradients are not applied. "
                f"Losses: {losses}. Lower optimizer.learning_rate, or look at the data "
                f"in {suspects.FOLDER}/ with launch/replay.py."
            )
        return self._numbers

    def _fetch(self, noted: dict) -> dict[str, float]:
        """Fetch the metrics of a finished step."""
        rates = {k: x.count for k, x in noted.items() if isinstance(x, Rate)}
        numbers = to_floats(noted | rates)
        now = time.perf_counter()
        self._fetched, seconds = now, now - self._fetched
        return {k: x / seconds if k in rates else x for k, x in numbers.items()}

    def _keep_suspect(self) -> None:
        """Save the step's batch where its metrics are not finite or are spikes."""
        reasons = [
            f"{name} {x:.3g}"
            for name, x in self._numbers.items()
            if name.startswith("spike/")
            or (name.startswith(("loss/", "optim/")) and not np.isfinite(x))
        ]
        if not reasons or self._batch is None:
            return
        batch = fetch(self._batch)  # of all processes
        if not self.active:
            return
        path = suspects.save_batch(self.workdir, self._step, batch, ", ".join(reasons))
        logging.warning(
            "Step %d: %s. Its batch: %s",
            self._step,
            ", ".join(reasons),
            path or f"not kept, {suspects.MOST} are",
        )

    def write_samples(self, step: int, samples: list[dict]) -> None:
        """Append a step's sampled conversations, one per line: prompt, response,
        reward, ... They replace the conversations that an interrupted run left of the
        step."""
        if self.active:
            path = self.workdir / "samples.jsonl"
            _keep_lines(path, lambda saved: saved < step)
            for sample in samples:
                _append_line(path, {"step": step} | sample)

    def close(self) -> dict[str, float]:
        """Write the pending metrics; return the last ones."""
        self.flush()
        if self.active:
            self._events.close()
            if self._logger is not None:
                self._logger.close()
        return self._numbers


class _Events:
    """The TensorBoard events of steps after `step`; events of these steps that an
    interrupted run wrote are hidden. There is no thread, so that an error of the disk
    is raised here."""

    def __init__(self, folder: Path, step: int):
        folder.mkdir(exist_ok=True)
        self._path, self._flushed = folder / "events", time.monotonic()
        with naming(self._path):
            # Otherwise two files of one second would have the same name.
            self._writer = EventsWriter(str(self._path), f".{time.time_ns()}")
            begin = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(step=step + 1, session_log=begin))

    def add(self, step: int, numbers: dict[str, float]) -> None:
        with naming(self._path):
            for name, number in numbers.items():
                summary = scalar(name, number)
                event = Event(step=step, wall_time=time.time(), summary=summary)
                self._writer.write_event(event)
            if time.monotonic() - self._flushed > EVENTS_EVERY_SECONDS:
                self._writer.flush()
                self._flushed = time.monotonic()

    def close(self) -> None:
        with naming(self._path):
            self._writer.close()


def read_metrics(workdir: str | os.PathLike) -> list[dict]:
    """Read the lines of a workdir's `metrics.jsonl`, in order; none without the file.
    An incomplete last line, left by a kill, is skipped.

    Raises:
        ValueError: another line is not a record of a step; names file and line.
    """
    path = Path(workdir) / "metrics.jsonl"
    records = [record for _, record in _records(path)]
    for place, record in enumerate(records, start=1):
        if not all(x is None or isinstance(x, int | float) for x in record.values()):
            raise _broken(path, place, json.dumps(record))
    return records


def _json_number(x: float):
    """Return a number for JSON, which has neither NaN nor infinity: null for them."""
    return x if np.isfinite(x) else None


def _number(x: float | None) -> float:
    """Invert `_json_number`, with NaN for null."""
    return float("nan") if x is None else x


def _append_line(path: Path, record: dict) -> None:
    with naming(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _keep_lines(path: Path, wanted: Callable[[int], bool]) -> None:
    """Keep the lines of the wanted steps; drop the others and an incomplete last
    line."""
    kept = [line for line, record in _records(path) if wanted(record["step"])]
    content = b"".join(line + b"\n" for line in kept)
    if path.exists() and path.read_bytes() != content:
        with writing_whole(path, "wb") as file:
            file.write(content)


def _records(path: Path) -> list[tuple[bytes, dict]]:
    """Return the lines of a file, each with its record of a step. A last line without a
    line break and without a record is left out, as cut by a kill.

    Raises:
        ValueError: another line is not a record; names file and line.
    """
    pairs = []
    # Not splitlines(), which also splits at other characters that a sample may hold.
    *lines, last = path.read_bytes().split(b"\n") if path.exists() else [b""]
    for place, line in enumerate([*lines, last] if last else lines, start=1):
        try:
            record = json.loads(line)
            if not (isinstance(record, dict) and type(record.get("step")) is int):
                raise ValueError
        except (ValueError, RecursionError):
            if place > len(lines):
                break
            raise _broken(path, place, line.decode(errors="replace")) from None
        pairs.append((line, record))
    return pairs


def _broken(path: Path, place: int, line: str) -> ValueError:
    return ValueError(
        f"{path}, line {place}: {line[:80]!r} is not a record of a step. Restore the "
        "file from a copy, or delete the line."
    )
