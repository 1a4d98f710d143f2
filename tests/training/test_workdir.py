"""A run's folder takes another config until it holds results."""

import json
from pathlib import Path

import jax
import pytest
from ml_collections import ConfigDict

from rlhf_jax.training import workdir as module
from rlhf_jax.training.workdir import (
    done_before,
    due,
    finish,
    is_finished,
    open_workdir,
    read_summary,
)

RESULTS = ["checkpoints/20/model/x", "metrics.jsonl", "summary.json"]


def config(**fields):
    return ConfigDict({"seed": 7, "optimizer": {"learning_rate": 0.1}} | fields)


def test_the_config_is_recorded_with_versions_and_seed(tmp_path):
    open_workdir(tmp_path / "run", config())
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["config"] == config().to_dict()
    assert record["versions"] == module.versions()
    assert record["seed"] == 7


def test_the_same_config_takes_the_folder_up_again(tmp_path):
    open_workdir(tmp_path, config())
    assert open_workdir(tmp_path, config()) == tmp_path


def write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")


@pytest.mark.parametrize("result", RESULTS)
def test_another_config_is_refused_where_there_is_a_result(result, tmp_path):
    open_workdir(tmp_path, config())
    write(tmp_path / result)
    with pytest.raises(ValueError, match=f"and holds {result.partition('/')[0]}.*"):
        open_workdir(tmp_path, config(seed=8))


NO_RESULTS = ["checkpoints/20.orbax-checkpoint-tmp/x", "log.txt", "answers_a.jsonl"]


@pytest.mark.parametrize("file", NO_RESULTS)
def test_a_folder_without_results_takes_the_corrected_config(file, tmp_path):
    open_workdir(tmp_path, config())
    write(tmp_path / file)
    open_workdir(tmp_path, config(seed=8))
    record = json.loads((tmp_path / "config.json").read_text())
    assert record["seed"] == record["config"]["seed"] == 8
    assert (tmp_path / file).exists()


def test_an_empty_metrics_file_is_no_result(tmp_path):
    open_workdir(tmp_path, config())
    (tmp_path / "metrics.jsonl").touch()
    open_workdir(tmp_path, config(seed=8))


@pytest.mark.parametrize("text", ["", "{", "[]", "5"])
def test_a_damaged_config_is_written_anew_unless_there_is_a_result(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    open_workdir(tmp_path, config())
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 7
    (tmp_path / "config.json").write_text(text)
    write(tmp_path / "summary.json")
    with pytest.raises(ValueError, match=r"config\.json"):
        open_workdir(tmp_path, config())


def test_what_the_old_config_made_goes_and_what_the_new_one_names_stays(tmp_path):
    named = tmp_path / "tokenizer"
    first = config(tokenizer=str(named))
    open_workdir(tmp_path, first)
    made = ["data/made_from.json", "tokenizer/x", "reference_scores.npz"]
    for file in made:
        write(tmp_path / file)
    open_workdir(tmp_path, first)  # the same config: all of it is used again
    assert all((tmp_path / file).exists() for file in made)
    open_workdir(tmp_path, config(tokenizer=str(named), seed=8))
    assert [(tmp_path / file).exists() for file in made] == [False, True, False]
    open_workdir(tmp_path, config())
    assert not named.exists()


def test_data_that_the_run_did_not_make_stays(tmp_path):
    open_workdir(tmp_path, config())
    write(tmp_path / "data" / "sft.jsonl")
    open_workdir(tmp_path, config(seed=8))
    assert (tmp_path / "data" / "sft.jsonl").exists()


def stages(**rates):
    return config(**{name: {"rate": rate} for name, rate in rates.items()})


PARTS = {"sft": ["sft"], "dpo": ["dpo_1", "dpo_2"]}


def test_a_stage_that_has_not_begun_may_change(tmp_path):
    open_workdir(tmp_path, stages(sft=1, dpo=1), parts=PARTS)
    write(tmp_path / "sft" / "summary.json")
    open_workdir(tmp_path, stages(sft=1, dpo=2), parts=PARTS)
    record = json.loads((tmp_path / "config.json").read_text())
    assert record["config"]["dpo"] == {"rate": 2}
    write(tmp_path / "dpo_2" / "metrics.jsonl")
    with pytest.raises(ValueError, match=r"config\.dpo\.rate: 2 -> 3") as error:
        open_workdir(tmp_path, stages(sft=1, dpo=3), parts=PARTS)
    assert "dpo_2/metrics.jsonl" in str(error.value)
    with pytest.raises(ValueError, match=r"config\.sft\.rate: 1 -> 2"):
        open_workdir(tmp_path, stages(sft=2, dpo=2), parts=PARTS)


def test_what_all_stages_share_may_not_change_once_one_has_begun(tmp_path):
    open_workdir(tmp_path, stages(sft=1), parts=PARTS)
    write(tmp_path / "sft" / "summary.json")
    with pytest.raises(ValueError, match=r"config\.seed: 7 -> 8"):
        open_workdir(tmp_path, config(seed=8, sft={"rate": 1}), parts=PARTS)


@pytest.fixture
def second_differs(monkeypatch):
    """As if a second process had been started with a difference."""

    def also(change):
        def exchange(record):
            other = json.loads(json.dumps(record))
            change(other)
            return [record, other]

        monkeypatch.setattr(module, "exchange", exchange)

    return also


def test_processes_with_other_configs_are_refused(second_differs, tmp_path):
    second_differs(lambda record: record["config"].update(seed=9))
    with pytest.raises(ValueError, match=r"Process 1 differs .*config\.seed: 7 -> 9"):
        open_workdir(tmp_path / "run", config())
    assert not (tmp_path / "run").exists()


def test_processes_with_other_code_are_refused(second_differs, tmp_path):
    second_differs(lambda record: record["versions"].update(jax="0.1"))
    with pytest.raises(ValueError, match=r"Process 1 differs .*versions\.jax"):
        open_workdir(tmp_path / "run", config())


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("jax_enable_x64", True, "versions.jax_enable_x64: 'False' -> 'True'"),
        ("jax_default_matmul_precision", "default", "matmul_precision: 'highest' ->"),
        ("XLA_FLAGS", "--xla_x=1 --xla_dump_to=d", "versions.XLA_FLAGS: .*--xla_x=1"),
        ("LIBTPU_INIT_ARGS", "--y", "versions.LIBTPU_INIT_ARGS: '' -> '--y'"),
    ],
)
def test_processes_with_other_settings_are_refused(name, value, said, monkeypatch):
    mine = module.versions.__wrapped__()
    before = None if name.isupper() else getattr(jax.config, name)
    if name.isupper():
        monkeypatch.setenv(name, value)
    else:
        jax.config.update(name, value)
    records = [{"versions": x} for x in (mine, module.versions.__wrapped__())]
    if not name.isupper():
        jax.config.update(name, before)
    with pytest.raises(ValueError, match=said) as error:
        module.refuse_difference(records)
    assert "dump" not in str(error.value)


def test_another_config_is_refused_and_the_keys_named(tmp_path):
    open_workdir(tmp_path, config())
    write(tmp_path / "summary.json")
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


def test_a_finished_run_says_so_with_its_result(tmp_path, caplog):
    assert not done_before(tmp_path)
    finish(tmp_path, {"a": 1.23456, "b": {"c": 1}, "d": 2})
    with caplog.at_level("INFO"):
        assert done_before(tmp_path)
    assert f"{tmp_path} is finished: nothing to do." in caplog.text
    assert "a 1.235, d 2" in caplog.text


def test_due_counts_in_steps_and_includes_the_last():
    assert [s for s in range(1, 8) if due(s, 3, 7)] == [3, 6, 7]
    assert not any(due(s, 0, 7) for s in range(1, 8))
