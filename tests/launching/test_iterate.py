"""Rounds of iterative DPO: what each starts from, and that they go on."""

import pytest

from configs import iterative_dpo
from rlhf_jax.data.sources import FOLDER
from rlhf_jax.launching import iterate
from rlhf_jax.training.workdir import finish, is_finished, read_summary


@pytest.fixture
def runs(monkeypatch):
    """The (folder's name, config) of every stage that is run; none is really run."""
    found = []

    def record(config, workdir):
        found.append((workdir.name, config))
        finish_with = {"kept": 3} if config.stage == "pairs" else {"loss/dpo": 0.5}
        workdir.mkdir(parents=True)
        finish(workdir, finish_with)

    monkeypatch.setattr(iterate, "run_stage", record)
    return found


@pytest.fixture
def config(tmp_path):
    for name in FOLDER:
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).touch()
    config = iterative_dpo.get_config("tiny")
    config.data.path = str(tmp_path / "data")
    config.init_from, config.reward_model, config.rounds = "SFT", "REWARD", 2
    return config


def test_each_round_samples_from_the_policy_of_the_last(runs, config, tmp_path):
    iterate.run(config, str(tmp_path / "run"))
    names = [name for name, _ in runs]
    assert names == ["pairs_1", "dpo_1", "pairs_2", "dpo_2"]
    first, trained, second, last = (c for _, c in runs)
    assert first.init_from == trained.init_from == "SFT"
    assert second.init_from == last.init_from == str(tmp_path / "run" / "dpo_1")
    assert first.reward_model == second.reward_model == "REWARD"
    assert last.pairs == str(tmp_path / "run" / "pairs_2" / "comparisons.jsonl")
    assert [c.seed for _, c in runs] == [1, 1, 2, 2]
    assert {c.data.path for _, c in runs} == {str(tmp_path / "data")}
    summary = read_summary(tmp_path / "run")
    assert summary["round_2"] == {"pairs": {"kept": 3}, "dpo": {"loss/dpo": 0.5}}


@pytest.mark.parametrize(
    ("reference", "expected"), [("first", "SFT"), ("previous", "")]
)
def test_the_reference_is_the_first_policy_or_the_rounds_own(
    reference, expected, runs, config, tmp_path
):
    config.reference = reference
    iterate.run(config, str(tmp_path / "run"))
    assert [c.reference_from for n, c in runs if n.startswith("dpo")] == [expected] * 2


def test_an_interrupted_run_goes_on_where_it_stopped(
    runs, config, tmp_path, monkeypatch
):
    record = iterate.run_stage

    def die_in_dpo(config, workdir):
        if config.stage == "dpo":
            raise KeyboardInterrupt
        record(config, workdir)

    with monkeypatch.context() as patch:
        patch.setattr(iterate, "run_stage", die_in_dpo)
        with pytest.raises(KeyboardInterrupt):
            iterate.run(config, str(tmp_path / "run"))
    assert not is_finished(tmp_path / "run")
    iterate.run(config, str(tmp_path / "run"))
    assert [name for name, _ in runs] == ["pairs_1", "dpo_1", "pairs_2", "dpo_2"]
    assert is_finished(tmp_path / "run")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"reference": "sft"}, "reference='sft' must be 'first' or 'previous'"),
        ({"rounds": 0}, "rounds=0 must be at least 1"),
        ({"init_from": ""}, "config.init_from is empty"),
        ({"reward_model": ""}, "config.reward_model is empty"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(
    fields, message, runs, config, tmp_path
):
    config.update(fields)
    with pytest.raises(ValueError, match=message):
        iterate.run(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    assert not runs
