import json

import pytest
from ml_collections import ConfigDict

from rlhf_jax.training.workdir import (
    due,
    finish,
    is_finished,
    open_workdir,
    read_summary,
)


def config(**fields):
    return ConfigDict({"seed": 7, "optimizer": {"learning_rate": 0.1}} | fields)


def test_the_config_is_recorded_with_versions_and_seed(tmp_path):
    open_workdir(tmp_path / "run", config())
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["config"] == config().to_dict()
    assert set(record["versions"]) == {"rlhf_jax", "jax", "flax"}
    assert record["seed"] == 7


def test_the_same_config_takes_the_folder_up_again(tmp_path):
    open_workdir(tmp_path, config())
    assert open_workdir(tmp_path, config()) == tmp_path


def test_another_config_is_refused_and_the_keys_named(tmp_path):
    open_workdir(tmp_path, config())
    other = config(extra=1)
    other.optimizer.learning_rate = 0.2
    with pytest.raises(
        ValueError, match="belongs to a run with another config"
    ) as error:
        open_workdir(tmp_path, other)
    text = str(error.value)
    assert "config.optimizer.learning_rate: 0.1 -> 0.2" in text
    assert "config.extra: '<absent>' -> 1" in text
    assert "seed" not in text


def test_a_summary_marks_the_end(tmp_path):
    assert not is_finished(tmp_path)
    finish(tmp_path, {"a": 1})
    assert is_finished(tmp_path)
    assert read_summary(tmp_path) == {"a": 1}


def test_due_counts_in_steps_and_includes_the_last():
    assert [s for s in range(1, 8) if due(s, 3, 7)] == [3, 6, 7]
    assert not any(due(s, 0, 7) for s in range(1, 8))
