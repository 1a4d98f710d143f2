"""A run's folder: what configured it, and whether it is the folder of this run."""

import json
import os
from pathlib import Path

import flax
import jax
from ml_collections import ConfigDict

import rlhf_jax


def versions() -> dict[str, str]:
    return {
        "rlhf_jax": rlhf_jax.__version__,
        "jax": jax.__version__,
        "flax": flax.__version__,
    }


def open_workdir(workdir: str | os.PathLike, config: ConfigDict) -> Path:
    """Make the folder, or take up one that the same config left; write config.json.

    Raises:
        ValueError: the folder holds a run of another config; the keys that differ are
            listed with both values.
    """
    folder = Path(workdir)
    path = folder / "config.json"
    resolved = json.loads(config.to_json_best_effort())
    if path.exists():
        recorded = json.loads(path.read_text(encoding="utf-8"))["config"]
        differences = list(_differences(recorded, resolved))
        if differences:
            raise ValueError(
                f"{folder} belongs to a run with another config. Use a new --workdir, "
                "or the old values. Keys that differ (there -> here):\n  "
                + "\n  ".join(differences)
            )
        return folder
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        record = {"config": resolved, "versions": versions(), "seed": config.seed}
        _write_json(path, record)
    return folder


def _write_json(path: Path, record: dict) -> None:
    """The file appears whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=2, ensure_ascii=False))
    temporary.replace(path)


def _differences(there, here, prefix=""):
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted(there.keys() | here.keys()):
            yield from _differences(
                there.get(key, "<absent>"), here.get(key, "<absent>"), f"{prefix}.{key}"
            )
    elif there != here:
        yield f"config{prefix}: {there!r} -> {here!r}"


def finish(workdir: str | os.PathLike, summary: dict) -> None:
    """Write summary.json: the stage's last numbers, and the sign that it is done."""
    if jax.process_index() == 0:
        _write_json(Path(workdir) / "summary.json", summary)


def is_finished(workdir: str | os.PathLike) -> bool:
    """Whether the run of this folder came to its end."""
    return (Path(workdir) / "summary.json").exists()


def read_summary(workdir: str | os.PathLike) -> dict:
    return json.loads((Path(workdir) / "summary.json").read_text(encoding="utf-8"))


def due(step: int, every: int, total: int) -> bool:
    """Whether something that happens `every` so many steps (0: never) and at the end
    happens after this one (1 is the first step)."""
    return bool(every) and (step % every == 0 or step == total)
