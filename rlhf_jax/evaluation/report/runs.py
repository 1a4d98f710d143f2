"""Finished and unfinished runs, as their folders tell of them; seeds of one run
together."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from absl import logging

DEPTH = 4  # folders below the given ones that are looked into
INNER = {"checkpoints", "events", "tokenizer", "data", "evaluation"}  # of runs
ORDER = (
    "sft",
    "collect",
    "prepare_comparisons",
    "reward",
    "ppo",
    "pairs",
    "dpo",
    "evaluate",
)


class Run(NamedTuple):
    """A folder of a stage.

    `summary` is None until the run is done; `metrics` is empty where nothing was
    trained.
    """

    folder: Path
    name: str
    stage: str
    config: dict
    metrics: list[dict]
    summary: dict | None

    @property
    def seed(self) -> int:
        return self.config.get("seed", 0)

    def series(self, metric: str, *, where: str = "") -> list[tuple[int, float]]:
        """(step, value) of every line that has the metric, and `where` if given."""
        return [
            (line["step"], line[metric])
            for line in self.metrics
            if has_number(line, metric) and has_number(line, where or metric)
        ]


class Group(NamedTuple):
    """Runs that differ in their seeds alone."""

    label: str
    stage: str
    runs: list[Run]


def find_runs(folders: Sequence[str | os.PathLike]) -> tuple[list[Run], list[str]]:
    """Every run in these folders or below, and what a reader should know of those that
    are missing.

    Raises:
        FileNotFoundError: one of them is no folder.
        ValueError: there is no run in one of them.
    """
    places: dict[Path, None] = {}  # in order, each once
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise FileNotFoundError(f"There is no folder {folder}.")
        found = list(_run_folders(folder.resolve(), DEPTH))
        if not found:
            raise ValueError(
                f"No run in {folder} or below: a run has a config.json that names its "
                "stage."
            )
        places |= dict.fromkeys(found)
    root = Path(os.path.commonpath([place.parent for place in places]))
    runs, notes, seen = [], [], {}
    for place in places:
        run = _read(place, str(place.relative_to(root)))
        known = seen.setdefault((run.stage, group_key(run), run.seed), run.name)
        if known != run.name:
            notes.append(f"{run.name} is left out: config and seed are {known}'s.")
            continue
        if run.summary is None:
            steps = run.metrics[-1]["step"] if run.metrics else 0
            notes.append(f"{run.name} is not finished: {steps} steps.")
        runs.append(run)
    return runs, notes


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Runs by what they are, the stages in the order of the pipeline."""
    found: dict[tuple, list[Run]] = {}
    for run in runs:
        found.setdefault((run.stage, group_key(run)), []).append(run)
    groups, labels = [], set()
    for (stage, _), members in found.items():
        label = unique = _label(members)
        number = 1
        while unique in labels:
            number += 1
            unique = f"{label} ({number})"
        labels.add(unique)
        groups.append(Group(unique, stage, members))
    place = {stage: i for i, stage in enumerate(ORDER)}
    return sorted(groups, key=lambda group: place.get(group.stage, len(place)))


def flat_config(run: Run) -> dict[str, str]:
    """Key with dots -> value, without seeds and with paths as seen from the run's
    parent folder: the same for runs that only seeds tell apart."""
    parent = f"{run.folder.parent}{os.sep}"
    return {
        key: str(value).replace(parent, "")
        for key, value in _flat(run.config)
        if key.rpartition(".")[2] != "seed"
    }


def group_key(run: Run) -> tuple:
    return tuple(sorted(flat_config(run).items()))


def read_lines(path: Path) -> list[dict]:
    """The objects of a .jsonl file; a half line, as a killed run leaves it, is passed
    over. Empty where there is no file."""
    if not path.is_file():
        return []
    found = []
    for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), 1):
        try:
            record = json.loads(line)
        except ValueError:
            logging.warning("%s, line %d is not JSON; passed over.", path, number)
            continue
        if isinstance(record, dict):
            found.append(record)
    return found


def _run_folders(folder: Path, depth: int) -> Iterator[Path]:
    if _stage(folder):
        yield folder
    elif depth:
        for inner in sorted(folder.iterdir()):
            if inner.is_dir() and inner.name not in INNER:
                yield from _run_folders(inner, depth - 1)


def _stage(folder: Path) -> str:
    """What the run in a folder is; "" where there is none."""
    config = _read_json(folder / "config.json").get("config")
    return str(config.get("stage", "")) if isinstance(config, dict) else ""


def _read(folder: Path, name: str) -> Run:
    done = (folder / "summary.json").is_file()
    return Run(
        folder,
        name,
        _stage(folder),
        _read_json(folder / "config.json")["config"],
        [line for line in read_lines(folder / "metrics.jsonl") if "step" in line],
        _read_json(folder / "summary.json") if done else None,
    )


def _read_json(path: Path) -> dict:
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    return found if isinstance(found, dict) else {}


def _flat(config: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _label(runs: Sequence[Run]) -> str:
    """The parts of the runs' names that they share: "seed0/ppo" and "seed1/ppo" are
    ppo."""
    if len(runs) == 1:
        return runs[0].name
    names = [run.name.replace(os.sep, ",").split(",") for run in runs]
    shared = [part for part in names[0] if all(part in name for name in names)]
    return ",".join(shared) or runs[0].stage


def has_number(line: dict, metric: str) -> bool:
    return isinstance(line.get(metric), int | float)
