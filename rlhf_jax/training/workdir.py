"""A run's folder: what configured it, and whether it is the folder of this run."""

import json
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import flax
import jax
from ml_collections import ConfigDict

import rlhf_jax
from rlhf_jax.training import lock, options
from rlhf_jax.training.metrics import MEASURED


def versions() -> dict[str, str]:
    return {
        "rlhf_jax": rlhf_jax.__version__,
        "jax": jax.__version__,
        "flax": flax.__version__,
    }


def open_workdir(
    workdir: str | os.PathLike, config: ConfigDict, *, free: Collection[str] = ()
) -> Path:
    """Make the folder, or take up one that the same config left; write config.json.
    It is this process's until `finish`, or the process's end.

    Args:
        free: keys, "service.timeout", that may differ: no result depends on them. Nor
            does one on the mesh, so that a run goes on with other devices.

    Raises:
        ValueError: the folder holds a run of another config; the keys that differ are
            listed with both values. Or another process is at work there; or a value of
            the config makes no sense, and nothing is made.
    """
    options.check(config)
    folder = Path(workdir)
    path = folder / "config.json"
    resolved = json.loads(config.to_json_best_effort())
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(folder)
    if path.exists():
        recorded = _read_json(path).get("config", {})
        differences = [
            f"config.{key}: {there!r} -> {here!r}"
            for key, there, here in config_differences(recorded, resolved)
            if key not in free and not key.endswith("mesh")
        ]
        if differences:
            raise ValueError(
                f"{folder} belongs to a run with another config. Use a new --workdir, "
                "or the old values. Keys that differ (there -> here):\n  "
                + "\n  ".join(differences)
            )
        return folder
    if jax.process_index() == 0:
        record = {"config": resolved, "versions": versions(), "seed": config.seed}
        _write_json(path, record)
    return folder


def _write_json(path: Path, record: dict) -> None:
    """The file appears whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=2, ensure_ascii=False))
    temporary.replace(path)


def _read_json(path: Path) -> dict:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}). Restore it from a copy, or start anew "
            "in another --workdir."
        ) from None


def config_differences(there, here, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(key with dots, value there, value here) wherever two configs differ."""
    if isinstance(there, dict) and isinstance(here, dict):
        for name in sorted(there.keys() | here.keys()):
            yield from config_differences(
                there.get(name, "<absent>"),
                here.get(name, "<absent>"),
                f"{key}.{name}".lstrip("."),
            )
    elif there != here:
        yield key, there, here


def finish(workdir: str | os.PathLike, summary: dict) -> None:
    """Write summary.json: the stage's last numbers, and the sign that it is done. How
    fast it was stays out: the same run leaves the same summary."""
    if jax.process_index() == 0:
        found = {k: x for k, x in summary.items() if not k.startswith(MEASURED)}
        _write_json(Path(workdir) / "summary.json", found)
        lock.release(Path(workdir))


def is_finished(workdir: str | os.PathLike) -> bool:
    """Whether the run of this folder came to its end."""
    return (Path(workdir) / "summary.json").exists()


def read_summary(workdir: str | os.PathLike) -> dict:
    return _read_json(Path(workdir) / "summary.json")


def due(step: int, every: int, total: int) -> bool:
    """Whether something that happens `every` so many steps (0: never) and at the end
    happens after this one (1 is the first step)."""
    return bool(every) and (step % every == 0 or step == total)
