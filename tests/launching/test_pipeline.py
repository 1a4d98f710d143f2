"""The pipeline: which stage follows which, and what each reads of those before it."""

import pytest

from configs import pipeline as config_file
from rlhf_jax.data.sources import FOLDER
from rlhf_jax.launching import pipeline, stage
from rlhf_jax.launching.stage import run_stage
from rlhf_jax.training.workdir import finish, is_finished

HELD_OUT = {
    "eval/accuracy": 0.7333,
    "eval/accuracy_low": 0.706,
    "eval/accuracy_high": 0.76,
    "eval/pairs": 2195.0,
    "eval/always_longer": 0.608,
    "eval/bag_of_words": 0.565,
}


@pytest.fixture
def stages(monkeypatch):
    """The configs of the stages that were run, by name; none is really run."""
    found = {}

    def record(config, workdir):
        found[config.stage] = config
        workdir.mkdir(parents=True, exist_ok=True)
        finish(workdir, HELD_OUT if config.stage == "reward" else {})

    monkeypatch.setattr(stage, "run_stage", record)
    monkeypatch.setattr(pipeline, "write_report", lambda *_, **__: None)
    return found


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in FOLDER:
        (folder / name).touch()
    return folder


@pytest.mark.parametrize("preset", ["tiny", "hh"])
def test_comparisons_go_one_road_to_the_reward_model(
    preset, stages, data, tmp_path, capsys
):
    """Collected raw or brought by the data, cleaned, and only then trained on; at the
    end the reward model stands beside its rivals."""
    run = tmp_path / "run"
    config = config_file.get_config(preset)
    config.data.path = str(data)
    if preset == "hh":
        (data / "comparisons_test.jsonl").touch()
        (data / "comparisons.jsonl").touch()
    pipeline.run(config, str(run))
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "reward: agrees with 73.3% [70.6%, 76.0%] of 2,195 held-out comparisons, "
        "always",
        "longer 60.8%, bag of words 56.5%.",
    ]

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


MISTAKES = [  # of stages behind the first: section, key, value, what is said
    ("ppo", "advantage", "grpo", "ppo: advantage='grpo' compares the responses"),
    ("dpo", "loss", "ppo", "dpo: loss='ppo' must be one of"),
    ("dpo", "eval_prompts", "nowhere.jsonl", "dpo: There is no file nowhere.jsonl"),
    ("evaluate", "judge", "me", "evaluate: judge='me' must be one of"),
    ("evaluate", "temperature", -1.0, "evaluate: config.temperature=-1.0 must be"),
    ("pairs", "rule", "best", "pairs: rule='best' must be one of"),
    ("collect", "annotator", "crowd", "collect: .*annotator='crowd' must be"),
    ("ppo", "mesh", (3, 1, 1), r"ppo: mesh=\(3, 1, 1\) does not make up"),
    ("ppo", "batch_size", 3, "ppo: batch_size=3 does not divide"),
    ("data", "path", "nowhere", "There is no file or folder nowhere"),
    ("data", "tokenizer", "nowhere", "There is no tokenizer in nowhere"),
]


@pytest.mark.parametrize(("section", "key", "value", "message"), MISTAKES)
def test_a_mistake_of_any_stage_is_told_before_the_first_one(
    section, key, value, message, stages, data, tmp_path
):
    config = config_file.get_config("tiny")
    config.data.path = str(data)
    right = config[section][key]
    config[section][key] = value
    with pytest.raises((ValueError, OSError), match=message):
        pipeline.run(config, str(tmp_path / "run"))
    assert not stages and not (tmp_path / "run").exists()
    config[section][key] = right
    pipeline.run(config, str(tmp_path / "run"))
    assert is_finished(tmp_path / "run")


def test_a_bad_line_of_the_data_is_told_before_the_first_stage(stages, data, tmp_path):
    config = config_file.get_config("tiny")
    config.data.path = str(data)
    (data / "eval_prompts.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"eval_prompts.jsonl, line 1"):
        pipeline.run(config, str(tmp_path / "run"))
    assert not stages


def test_a_stage_that_has_not_begun_may_change(stages, data, tmp_path, monkeypatch):
    """The run uses the results of earlier stages."""
    config, run = config_file.get_config("tiny"), tmp_path / "run"
    config.data.path = str(data)
    record = stage.run_stage

    def die_at_ppo(config, workdir):
        if config.stage == "ppo":
            raise ValueError("a mistake that only training shows")
        record(config, workdir)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "run_stage", die_at_ppo)
        with pytest.raises(ValueError, match="only training shows"):
            pipeline.run(config, str(run))
    assert is_finished(run / "reward")
    stages.clear()
    config.reward.epochs += 1  # it is done
    with pytest.raises(ValueError, match=r"config.reward.epochs"):
        pipeline.run(config, str(run))
    config.reward.epochs -= 1
    config.ppo.kl_coef, config.dpo.beta = 0.5, 0.3
    pipeline.run(config, str(run))
    assert list(stages) == ["ppo", "pairs", "dpo", "evaluate"]
    assert stages["ppo"].kl_coef == 0.5


def test_a_stage_that_works_on_files_alone_needs_no_mesh(tmp_path):
    """Its command once ended in an error for want of one."""
    config = config_file.prepare_comparisons.get_config()
    config.comparisons = str(tmp_path / "nowhere.jsonl")
    with pytest.raises(FileNotFoundError, match=r"There is no file .*nowhere.jsonl"):
        run_stage(config, tmp_path / "run")
