"""The second writer of metrics, with a package that notes what it is told."""

import json
import sys

import pytest

from configs import sft as sft_config
from rlhf_jax.training import options
from rlhf_jax.training.metrics import Mean, Writer

FAKE = """
import json
from pathlib import Path
NOTES = Path(__file__).with_name("notes.jsonl")
def note(*said):
    with NOTES.open("a") as file:
        file.write(json.dumps(said) + "\\n")
def init(**options):
    if FAILS:
        raise RuntimeError("no API key\\nconfigured")
    note("init", options)
def log(numbers, step):
    note("log", step, numbers)
def finish():
    note("finish")
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """`package(name)` makes a package of this name; it returns what was noted."""
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)

    def make(name, fails=False):
        (folder / f"{name}.py").write_text(f"FAILS = {fails}\n{FAKE}")
        monkeypatch.delitem(sys.modules, name, raising=False)
        path = folder / "notes.jsonl"
        return lambda: [json.loads(line) for line in path.read_text().splitlines()]

    return make


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_every_step_goes_to_the_logger_with_the_config(name, package, tmp_path):
    noted = package(name)
    workdir = tmp_path / "run-7"
    workdir.mkdir()
    (workdir / "config.json").write_text('{"config": {"seed": 3}}')
    writer = Writer(workdir, 0, 1, 0.0, name)
    for step in (1, 2):
        writer.write(step, {"loss/sft": Mean.of([float(step)])})
    writer.close()
    (_, begun), *steps, end = noted()
    assert begun["project"] == "rlhf_jax"
    assert (begun["name"], begun["config"]) == ("run-7", {"seed": 3})
    assert begun["resume"] == "allow"
    assert steps == [["log", 1, {"loss/sft": 1.0}], ["log", 2, {"loss/sft": 2.0}]]
    assert end == ["finish"]
    Writer(workdir, 2, 1, 0.0, name).close()
    assert noted()[4][1] == begun  # the same record
    other = tmp_path / "other" / "run-7"
    Writer(other, 0, 1, 0.0, name).close()
    assert (noted()[6][1].get("id") == begun.get("id")) == (name == "trackio")


def test_a_logger_that_cannot_start_is_one_clear_line(package, tmp_path):
    package("wandb", fails=True)
    message = r"'wandb' cannot start: RuntimeError: no API key configured. Set it up"
    with pytest.raises(ValueError, match=message):
        Writer(tmp_path / "run", 0, 1, 0.0, "wandb")


def test_a_missing_package_is_refused_before_the_run(tmp_path, monkeypatch):
    config = sft_config.get_config("tiny")
    config.logger = "trackio"
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    (tmp_path / "trackio").mkdir()  # a folder of runs is no package
    with pytest.raises(ValueError, match="not installed: pip install trackio"):
        options.check(config)
    config.logger = "tensorboard"
    with pytest.raises(ValueError, match="logger='tensorboard' must be one of"):
        options.check(config)
