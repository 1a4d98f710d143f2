"""The pipeline: which stage follows which, and what each reads of those before it."""

import pytest

from configs import pipeline as config_file
from rlhf_jax.data.sources import FOLDER
from rlhf_jax.launching import pipeline
from rlhf_jax.launching.stage import run_stage
from rlhf_jax.training.workdir import finish


@pytest.mark.parametrize("preset", ["tiny", "hh"])
def test_comparisons_go_one_road_to_the_reward_model(preset, tmp_path, monkeypatch):
    """Collected raw or brought by the data, cleaned, and only then trained on."""
    stages = {}

    def record(config, workdir):
        stages[config.stage] = config
        workdir.mkdir(parents=True)
        finish(workdir, {})

    monkeypatch.setattr(pipeline, "run_stage", record)
    monkeypatch.setattr(pipeline, "write_report", lambda *_, **__: None)
    data, run = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    for name in FOLDER:
        (data / name).touch()
    config = config_file.get_config(preset)
    config.data.path = str(data)
    pipeline.run(config, str(run))

    raw = data if preset == "hh" else run / "collect"
    preparation, reward = stages["prepare_comparisons"], stages["reward"]
    assert preparation.comparisons == str(raw / "comparisons.jsonl")
    assert preparation.tokenizer == str(run / "sft")
    prepared = run / "prepare_comparisons"
    assert reward.comparisons == str(prepared / "comparisons.jsonl")
    held_out = data if preset == "hh" else prepared
    assert reward.comparisons_test == str(held_out / "comparisons_test.jsonl")
    assert (preparation.test_share == 0) == (preset == "hh")
    order = ["sft", "collect", "prepare_comparisons", "reward", "ppo", "pairs", "dpo"]
    expected = [name for name in [*order, "evaluate"] if name in stages]
    assert list(stages) == expected
    assert len(expected) == (7 if preset == "hh" else 8)


def test_a_stage_that_works_on_files_alone_needs_no_mesh(tmp_path):
    """Its command once ended in an error for want of one."""
    config = config_file.prepare_comparisons.get_config()
    config.comparisons = str(tmp_path / "nowhere.jsonl")
    with pytest.raises(FileNotFoundError, match=r"There is no file .*nowhere.jsonl"):
        run_stage(config, tmp_path / "run")
