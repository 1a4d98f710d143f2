"""Steps that look wrong: which they are, and their batches, kept for study.

`launch/replay.py` runs such a batch again.
"""

import json
from collections import Counter, deque
from pathlib import Path

import jax
import numpy as np

from rlhf_jax.files import read_arrays, write_arrays

FOLDER = "suspects"  # in the workdir: step_000012.npz
WINDOW = 100  # steps a loss is compared with
FEWEST = 20  # steps before any comparison; so many spikes in a row are a new level
MOST = 20  # batches kept of a run, the first ones


class Losses:
    """The last losses of a run, each `loss/...` by itself.

    Args:
        zscore: how many standard deviations above their mean a loss is suspect; 0:
            none is.
    """

    def __init__(self, zscore: float):
        self.zscore = zscore
        self._before: dict[str, deque] = {}
        self._in_a_row: Counter[str] = Counter()

    def add(self, numbers: dict[str, float]) -> dict[str, float]:
        """Take note of a step's losses; return those that stand out, as
        "spike/NAME" -> z-score. Spikes do not raise the bar for later ones; but a loss
        that stays up is measured anew."""
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
    None where the run has kept enough of them."""
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
    """The inverse: name -> field -> array; and the record, {"step", "reason"}.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no file of `save_batch`, or a broken one.
    """
    try:
        arrays = read_arrays(path)
        record = dict(json.loads(str(arrays.pop("record"))))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is no batch that a run saved: {error}") from None
    batch: dict[str, dict[str, np.ndarray]] = {}
    for name, x in arrays.items():
        part, _, field = name.partition(".")
        batch.setdefault(part, {})[field] = x
    return batch, record
