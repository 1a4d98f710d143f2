"""A run's folder: its config, its lock and its summary."""

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import flax
import jax
from absl import logging
from ml_collections import ConfigDict

import rlhf_jax
from rlhf_jax.files import read_json, write_json
from rlhf_jax.shared_work import exchange, first_does, is_first
from rlhf_jax.training import lock, options
from rlhf_jax.training.metrics import MEASURED

# Files of a start without results, which the next start makes again.
LEFTOVERS = ("tokenizer", "bad_records.jsonl", "inputs.json", "reference_*.npz")
MADE_DATA = "data/made_from.json"  # in data/ if the run itself made data/
SHOWN = 6  # the number of entries of a summary that the log shows
# Settings of JAX and of its compiler, often made in the environment, that change
# numbers.
JAX_SETTINGS = (
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_enable_x64",
    "jax_threefry_partitionable",
)
COMPILER_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of the libraries, the SHA-256 of our code, and the settings
    that change numbers."""
    code, package = hashlib.sha256(), Path(rlhf_jax.__file__).parent
    for path in sorted(package.rglob("*.py")):
        code.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return {
        "rlhf_jax": rlhf_jax.__version__,
        "rlhf_jax code": code.hexdigest()[:12],
        "jax": jax.__version__,
        "flax": flax.__version__,
        **{name: str(getattr(jax.config, name)) for name in JAX_SETTINGS},
        **{name: _without_dumps(name) for name in COMPILER_FLAGS},
    }


def _without_dumps(variable: str) -> str:
    """Return the compiler's flags in a variable, sorted, but for the folders of its
    dumps, which change no number."""
    flags = os.environ.get(variable, "").split()
    return " ".join(sorted(x for x in flags if not x.startswith("--xla_dump")))


def open_workdir(
    workdir: str | os.PathLike,
    config: ConfigDict,
    *,
    free: Collection[str] = (),
    parts: Mapping[str, Collection[str]] | None = None,
) -> Path:
    """Make the folder, or reuse one of the same config; write config.json. The folder
    stays locked for this process until `finish` or the end of the process. A folder
    without results (see `results`) accepts any config.

    Args:
        free: keys, such as "service.timeout", that may differ, because no result
            depends on them. Results do not depend on the mesh either, so that a run can
            resume on other devices.
        parts: a section of the config -> the folders in `workdir` of the runs that it
            configures. The section may differ while none of these runs has results.

    Raises:
        ValueError: the folder holds a run of another config (lists the differing keys
            with both values); another process uses the folder; a value of the config is
            invalid, and no folder is made; or the processes of the run were started
            with different configs or code.
    """
    options.check(config)
    folder = Path(workdir)
    resolved = json.loads(config.to_json_best_effort())
    own = {"--workdir": str(workdir), "versions": versions(), "config": resolved}
    refuse_difference(exchange(own))
    first_does(_open, folder, resolved, free, parts or {})
    return folder


def refuse_difference(records: list[dict]) -> None:
    """Refuse processes that were started differently or read different inputs.

    Args:
        records: the record of each process, in the order of the processes.

    Raises:
        ValueError: names the first process that differs from process 0, and the keys.
    """
    for number, record in enumerate(records):
        differences = list(config_differences(records[0], record))
        if differences:
            listed = ", ".join(f"{k}: {x!r} -> {y!r}" for k, x, y in differences)
            raise ValueError(
                f"Process {number} differs from process 0 (there -> here): {listed}. "
                "Start all processes with the same command, environment, code and "
                "files."
            )


def results(folder: Path) -> list[str]:
    """Return the results of a run in its folder: "checkpoints", "metrics.jsonl",
    "summary.json". The same command makes all other files again."""
    names = []
    checkpoints = folder / "checkpoints"
    if checkpoints.is_dir() and any(x.name[:1].isdigit() for x in _whole(checkpoints)):
        names.append("checkpoints")
    metrics = folder / "metrics.jsonl"
    if metrics.is_file() and metrics.stat().st_size:
        names.append(metrics.name)
    if (folder / "summary.json").is_file():
        names.append("summary.json")
    return names


def _held_by(folder: Path, parts: Collection[str]) -> list[str]:
    """Return the results in folders inside of a folder."""
    return [f"{name}/{x}" for name in parts for x in results(folder / name)]


def _whole(checkpoints: Path) -> list[Path]:
    """Return the complete checkpoints in a folder, including damaged ones."""
    return [path for path in checkpoints.iterdir() if "-tmp" not in path.name]


def _open(folder: Path, resolved: dict, free, parts: Mapping) -> None:
    """Take the lock and write config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    lock.acquire(folder)
    differences = refuse_other_config(folder, resolved, free=free, parts=parts)
    path = folder / "config.json"
    if path.exists():
        if not differences:
            return
        logging.info(
            "%s: the last start has no results; the run takes the new config: %s.",
            folder,
            ", ".join(f"config.{key}={here!r}" for key, _, here in differences),
        )
        if not results(folder) and not any(_held_by(folder, x) for x in parts.values()):
            _clear(folder, resolved)
    record = {"config": resolved, "versions": versions(), "seed": resolved["seed"]}
    write_json(path, record)


def refuse_other_config(
    folder: Path,
    resolved: dict,
    *,
    free: Collection[str] = (),
    parts: Mapping[str, Collection[str]] | None = None,
) -> list[tuple[str, Any, Any]]:
    """Compare a config with the one that a folder's run began with.

    Args:
        resolved: the config, as JSON has it.
        free: as in `open_workdir`.
        parts: as in `open_workdir`.

    Returns:
        (key with dots, value there, value here) of each difference; all are allowed.

    Raises:
        ValueError: the folder has results, and they were made with another config.
    """
    path, parts = folder / "config.json", parts or {}
    if not path.exists():
        return []
    begun = {section: _held_by(folder, names) for section, names in parts.items()}
    held = results(folder) + [name for names in begun.values() for name in names]
    try:
        recorded = read_json(path).get("config", {})
    except ValueError as error:
        if held:
            raise ValueError(
                f"{error} Restore it from a copy, or start anew in another --workdir."
            ) from None
        recorded = {}
    differences = [
        (key, there, here)
        for key, there, here in config_differences(recorded, resolved)
        if key not in free and not key.endswith(("mesh", "logger"))
    ]
    binding = [
        f"config.{key}: {there!r} -> {here!r}"
        for key, there, here in differences
        if held and begun.get(key.partition(".")[0], True)
    ]
    if binding:
        raise ValueError(
            f"{folder} belongs to a run with another config, and holds "
            f"{', '.join(held)}. Use a new --workdir, or the old values. Keys that "
            "differ (there -> here):\n  " + "\n  ".join(binding)
        )
    return differences


def _clear(folder: Path, resolved: dict) -> None:
    """Remove the files of a start with another config, unless the new config names
    them."""
    left = [path for name in LEFTOVERS for path in folder.glob(name)]
    if (folder / MADE_DATA).is_file():
        left.append(folder / "data")
    named = {os.path.abspath(x) for x in _texts(resolved) if x}
    for path in left:
        if os.path.abspath(path) in named:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _texts(config) -> Iterator[str]:
    """Return all strings of a config."""
    if isinstance(config, dict):
        for value in config.values():
            yield from _texts(value)
    elif isinstance(config, str):
        yield config


def config_differences(there, here, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Return (key with dots, value there, value here) for each difference between two
    configs."""
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
    """Write summary.json: the stage's last metrics, and the sign that the stage is
    done. Speeds are left out, so that the same run leaves the same summary. Process 0
    writes, and the other processes wait for it."""
    numbers = {k: x for k, x in summary.items() if not k.startswith(MEASURED)}
    first_does(write_json, Path(workdir) / "summary.json", numbers)
    if is_first():
        lock.release(Path(workdir))


def is_finished(workdir: str | os.PathLike) -> bool:
    """Return True if the run of this folder is finished."""
    return first_does((Path(workdir) / "summary.json").exists)


def done_before(workdir: str | os.PathLike) -> bool:
    """Return `is_finished`; for a finished run, log that nothing is done, and the
    result."""
    if not is_finished(workdir):
        return False
    numbers = [
        f"{name} {value:.4g}"
        for name, value in read_summary(workdir).items()
        if isinstance(value, int | float)
    ]
    logging.info(
        "%s is finished: nothing to do. Its result, summary.json: %s.",
        workdir,
        ", ".join(numbers[:SHOWN]) + ", ..." * (len(numbers) > SHOWN),
    )
    if is_first():
        lock.release(Path(workdir))
    return True


def read_summary(workdir: str | os.PathLike) -> dict:
    return read_json(Path(workdir) / "summary.json")


def due(step: int, every: int, total: int) -> bool:
    """Return True after every `every` steps and after the last step; 0 is never. The
    first step is 1."""
    return bool(every) and (step % every == 0 or step == total)
