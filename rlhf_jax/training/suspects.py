"""Suspect steps: spikes of the loss, and the batches saved for study.

`launch/replay.py` runs such a batch again.
"""

import json
from collections import Counter, deque
from pathlib import Path

import jax
import numpy as np

from rlhf_jax.files import read_arrays, write_arrays

FOLDER = "suspects"  # the folder in the workdir, with files such as step_000012.npz
WINDOW = 100  # the number of steps that a loss is compared with
FEWEST = (
    20  # steps before the first comparison; this many spikes in a row are a new level
)
MOST = 20  # the number of batches kept of a run, the first ones


class Losses:
    """The last losses of a run, for each metric `loss/...`.

    Args:
        zscore: the number of standard deviations above the mean from which a loss is
            suspect; 0 suspects none.
    """

    def __init__(self, zscore: float):
        self.zscore = zscore
        self._before: dict[str, deque] = {}
        self._in_a_row: Counter[str] = Counter()

    def add(self, numbers: dict[str, float]) -> dict[str, float]:
        """Record a step's losses; return the spikes as "spike/NAME" -> z-score. A spike
        does not count in the mean of later comparisons; a loss that stays high starts a
        new mean."""
        spikes = {}
        for name, x in numbers.items():
            if not name.startswith("loss/") or not np.isfinite(x):
                continue
            before = self._before.setdefault(name, deque(maxlen=WINDOW))
            deviation = np.std(before) if len(before) >= FEWEST else 0.0
            z = (x - np.mean(before)) / deviation if deviation else 0.0
            if 0 < self.zscore < z:
                spikes[f"spike/{name}"] = float(z)
                self._in_a_row[name] += 1
                if self._in_a_row[name] == FEWEST:
                    before.clear()
                    self._in_a_row[name] = 0
            else:
                before.append(x)
                self._in_a_row[name] = 0
        return spikes


def save_batch(workdir: Path, step: int, batch: dict, reason: str) -> Path | None:
    """Write a step's batch, name -> pytree of arrays, as arrays "NAME.field"; return
    its path, or None if the run has enough saved batches."""
    path = workdir / FOLDER / f"step_{step:06d}.npz"
    path.parent.mkdir(exist_ok=True)
    others = [x for x in path.parent.glob("step_*[0-9].npz") if x != path]
    if len(others) >= MOST:
        return None
    record = json.dumps({"step": step, "reason": reason})
    leaves, _ = jax.tree_util.tree_flatten_with_path(batch)
    arrays = {
        jax.tree_util.keystr(place, simple=True, separator="."): x
        for place, x in leaves
    }
    write_arrays(path, arrays | {"record": np.array(record)})
    return path


def load_batch(path: Path) -> tuple[dict[str, dict[str, np.ndarray]], dict]:
    """Read a file of `save_batch`: name -> field -> array, and the record, {"step",
    "reason"}.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not one of `save_batch`, or is broken.
    """
    try:
        arrays = read_arrays(path)
        record = dict(json.loads(str(arrays.pop("record"))))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is not a batch that a run saved: {error}") from None
    batch: dict[str, dict[str, np.ndarray]] = {}
    for name, x in arrays.items():
        part, _, field = name.partition(".")
        batch.setdefault(part, {})[field] = x
    return batch, record
