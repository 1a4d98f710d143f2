"""Finished and unfinished runs, read from their folders; runs that differ only in the
seed form a group."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from absl import logging

DEPTH = 4  # levels of folders searched below the given ones
INNER = {
    "checkpoints",
    "events",
    "tokenizer",
    "data",
    "evaluation",
}  # folders inside runs, not searched
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
    """The folder of a stage.

    `summary` is None until the run is done; `metrics` is empty for a stage that does
    not train.
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
        """Return (step, value) of every line that has the metric, and `where` if
        given."""
        return [
            (line["step"], line[metric])
            for line in self.metrics
            if has_number(line, metric) and has_number(line, where or metric)
        ]


class Group(NamedTuple):
    """Runs that differ only in their seeds."""

    label: str
    stage: str
    runs: list[Run]


def find_runs(folders: Sequence[str | os.PathLike]) -> tuple[list[Run], list[str]]:
    """Return every run in these folders or below, and notes about runs that are left
    out or unfinished.

    Raises:
        FileNotFoundError: a folder does not exist.
        ValueError: a folder holds no run.
    """
    places: dict[Path, None] = {}  # in order, each once
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise FileNotFoundError(f"There is no folder {folder}.")
        inside = list(_run_folders(folder.resolve(), DEPTH))
        if not inside:
            raise ValueError(
                f"No run in {folder} or below: a run has a config.json that names its "
                "stage."
            )
        places |= dict.fromkeys(inside)
    root = Path(os.path.commonpath([place.parent for place in places]))
    runs, notes, seen = [], [], {}
    for place in places:
        run = _read(place, str(place.relative_to(root)))
        first = seen.setdefault((run.stage, group_key(run), run.seed), run.name)
        if first != run.name:
            notes.append(f"{run.name} is left out: config and seed are {first}'s.")
            continue
        if run.summary is None:
            steps = run.metrics[-1]["step"] if run.metrics else 0
            notes.append(f"{run.name} is not finished: {steps} steps.")
        runs.append(run)
    return runs, notes


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Group runs that differ only in the seed, in the order of the pipeline's
    stages."""
    by_key: dict[tuple, list[Run]] = {}
    for run in runs:
        by_key.setdefault((run.stage, group_key(run)), []).append(run)
    groups, labels = [], set()
    for (stage, _), members in by_key.items():
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
    """Return key with dots -> value, without seeds and with paths relative to the run's
    parent folder: equal for runs that differ only in the seed."""
    parent = f"{run.folder.parent}{os.sep}"
    return {
        key: str(value).replace(parent, "")
        for key, value in _flat(run.config)
        if key.rpartition(".")[2] != "seed"
    }


def group_key(run: Run) -> tuple:
    return tuple(sorted(flat_config(run).items()))


def read_lines(path: Path) -> list[dict]:
    """Read the objects of a .jsonl file, none without the file. An incomplete line,
    left by a killed run, is skipped."""
    if not path.is_file():
        return []
    records = []
    for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), 1):
        try:
            record = json.loads(line)
        except ValueError:
            logging.warning("%s, line %d is not JSON; passed over.", path, number)
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def read_calibration(path: Path) -> dict:
    """Read the reliability of a reward model from its evaluation/report.json.

    Raises:
        ValueError: the file does not hold a reliability.
    """
    reliability = _read_json(path).get("calibration")
    bins = reliability.get("bins") if isinstance(reliability, dict) else None
    keys = ("confidence", "accuracy", "pairs")
    if not (
        isinstance(bins, list)
        and has_number(reliability, "expected_error")
        and all(_has_numbers(row, *keys) for row in bins)
    ):
        raise ValueError(
            f"{path} is not the report of a reward model: its 'calibration' needs "
            f"'expected_error' and 'bins' of {', '.join(keys)}. Remove the file, or "
            "evaluate the model again."
        )
    return reliability


def _check_summary(path: Path, stage: str, summary: dict) -> None:
    """Raise ValueError where an evaluation's summary.json lacks a key of the report."""
    if stage != "evaluate":
        return
    models = summary.get("models")
    sound = (
        isinstance(models, dict)
        and all(isinstance(summary.get(key), str) for key in ("judge", "baseline"))
        and all(_is_model(row) for row in models.values())
    )
    if not models or not sound:
        raise ValueError(
            f"{path} is not the summary of an evaluation: it needs 'judge', "
            "'baseline' and 'models', each model with its numbers. Remove "
            "the file, or evaluate again."
        )


def _is_model(row) -> bool:
    inner = {
        "quality": ("mean", "low", "high"),
        "against_baseline": ("win", "tie", "lose", "net"),
    }
    plain = ("kl", "log_ratio", "length", "score", "skills_right", "skills_logprob")
    return _has_numbers(row, *(key for key in plain if key in row)) and all(
        _has_numbers(row[key], *keys) for key, keys in inner.items() if key in row
    )


def _run_folders(folder: Path, depth: int) -> Iterator[Path]:
    if _stage(folder):
        yield folder
    elif depth:
        for inner in sorted(folder.iterdir()):
            if inner.is_dir() and inner.name not in INNER:
                yield from _run_folders(inner, depth - 1)


def _stage(folder: Path) -> str:
    """Return the stage of the run in a folder; "" without a run."""
    config = _read_json(folder / "config.json").get("config")
    return str(config.get("stage", "")) if isinstance(config, dict) else ""


def _read(folder: Path, name: str) -> Run:
    path, stage, summary = folder / "summary.json", _stage(folder), None
    if path.is_file():
        summary = _read_json(path)
        _check_summary(path, stage, summary)
    lines = read_lines(folder / "metrics.jsonl")
    return Run(
        folder,
        name,
        stage,
        _read_json(folder / "config.json")["config"],
        [line for line in lines if has_number(line, "step")],
        summary,
    )


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    return content if isinstance(content, dict) else {}


def _flat(config: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _label(runs: Sequence[Run]) -> str:
    """Return the shared parts of the runs' names: "ppo" for "seed0/ppo" and
    "seed1/ppo"."""
    if len(runs) == 1:
        return runs[0].name
    names = [run.name.replace(os.sep, ",").split(",") for run in runs]
    shared = [part for part in names[0] if all(part in name for name in names)]
    return ",".join(shared) or runs[0].stage


def has_number(line: dict, metric: str) -> bool:
    return isinstance(line.get(metric), int | float)


def _has_numbers(row, *keys: str) -> bool:
    return isinstance(row, dict) and all(has_number(row, key) for key in keys)
