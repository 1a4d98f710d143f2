"""The guide of docs/new_algorithm.md, followed: three copied files, no other edit."""

import importlib
import pkgutil
import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import rlhf_jax.stages
from rlhf_jax import algorithms
from rlhf_jax.launching import replay
from rlhf_jax.launching.stage import run_stage
from rlhf_jax.models.presets import preset
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.planning import arithmetic, programs
from rlhf_jax.training import suspects
from rlhf_jax.training.metrics import Writer
from rlhf_jax.training.workdir import is_finished

ROOT = Path(__file__).parents[2]
HEADINGS = ["Data", "Steps", "Models", "State", "Loop", "Hand on"]
NAMES = sorted(module.name for module in pkgutil.iter_modules(algorithms.__path__))


@pytest.mark.parametrize("name", NAMES)
def test_every_algorithm_has_a_stage_with_the_same_headings(name):
    source = (ROOT / "rlhf_jax" / "stages" / f"{name}.py").read_text()
    (run,) = re.findall(
        r"^def run\(.*?(?=^\w|\Z)", source, flags=re.DOTALL | re.MULTILINE
    )
    found = re.findall(r"\n\n    # (.+)", run)
    assert [heading.partition(":")[0] for heading in found] == HEADINGS
    assert re.search(
        r"^    check_options\(config\)\n    workdir = open_workdir", run, re.M
    )


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """`copy("dpo")`: algorithm, stage and config under the name "mine", elsewhere."""

    def make(name: str) -> None:
        for folder in ("algorithms", "stages", "configs"):
            (tmp_path / folder).mkdir()
            package = ROOT if folder == "configs" else ROOT / "rlhf_jax"
            text = (package / folder / f"{name}.py").read_text()
            text = text.replace(
                f"rlhf_jax.algorithms.{name}", "rlhf_jax.algorithms.mine"
            )
            text = text.replace(f'common.stage("{name}"', 'common.stage("mine"')
            (tmp_path / folder / "mine.py").write_text(text)
        for package in (algorithms, rlhf_jax.stages):
            folder = str(tmp_path / package.__name__.rpartition(".")[2])
            monkeypatch.setattr(package, "__path__", [*package.__path__, folder])
        monkeypatch.syspath_prepend(tmp_path)

    yield make
    for package in ("rlhf_jax.algorithms", "rlhf_jax.stages", "configs"):
        sys.modules.pop(f"{package}.mine", None)


def test_a_copy_is_trained_planned_and_replayed(
    copy, stage_config, tmp_path, monkeypatch
):
    copy("dpo")
    batches, write = [], Writer.write

    def write_and_keep(self, step, metrics, batch=None):
        batches.extend([batch] if batch else [])
        return write(self, step, metrics, batch)

    monkeypatch.setattr(Writer, "write", write_and_keep)
    config = stage_config("mine", eval_every=0, sft_batch_size=8)
    run_stage(config, tmp_path / "run")
    assert is_finished(tmp_path / "run")
    module = sys.modules["rlhf_jax.stages.mine"]
    assert module.train_step.__module__ == "rlhf_jax.algorithms.mine"

    saved = suspects.save_batch(tmp_path / "run", 1, batches[0], "a look at it")
    found = replay.replay(tmp_path / "run", saved)
    assert np.isfinite(found["loss"])
    assert len(found["rows"]) == config.batch_size


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_has_the_programs_of_the_original_and_its_bounds(name, copy, tmp_path):
    copy(name)
    original, mine = (
        importlib.import_module(f"configs.{x}").get_config("tiny")
        for x in (name, "mine")
    )
    with jax.set_mesh(make_mesh((1, 1, 1), jax.devices()[:1])):
        plans = [programs.of(config) for config in (original, mine)]
    assert [p.name for p in plans[0]] == [p.name for p in plans[1]]
    step = plans[1][0].function
    assert step.func.__module__ == "rlhf_jax.algorithms.mine"
    model = preset(mine.model)
    assert arithmetic.temporaries(mine, model, "update", devices=1)
    mine.optimizer.learning_rate = -1.0
    with pytest.raises(ValueError, match=r"learning_rate=-1.0 must be at least 0"):
        run_stage(mine, tmp_path / "run")
