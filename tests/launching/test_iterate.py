"""Rounds of iterative DPO: what each starts from, and that they go on."""

from pathlib import Path

import jax
import pytest

from configs import iterative_dpo
from configs.variants import base, online_dpo
from rlhf_jax.data.sources import FOLDER
from rlhf_jax.launching import checks, iterate
from rlhf_jax.stages import dpo, pairs
from rlhf_jax.training.workdir import finish, is_finished, read_summary


@pytest.fixture
def runs(monkeypatch):
    """The (folder's name, config) of every stage that is run; none is really run."""
    found = []

    def record(config, workdir):
        workdir = Path(workdir)
        found.append((workdir.name, config))
        meshes.append(dict(jax.sharding.get_mesh().shape))
        finish_with = {"kept": 3} if config.stage == "pairs" else {"loss/dpo": 0.5}
        workdir.mkdir(parents=True)
        finish(workdir, finish_with)

    monkeypatch.setattr(pairs, "run", record)
    monkeypatch.setattr(dpo, "run", record)
    monkeypatch.setattr(checks.model_checks, "check_kind", lambda folder, kind: None)
    monkeypatch.setattr(checks, "_check_memory", lambda config: None)
    meshes.clear()
    return found


meshes = []  # in which each of the stages ran


@pytest.fixture
def config(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for name in FOLDER:
        (data / name).touch()
    config = iterative_dpo.get_config("tiny")
    config.data.path = str(tmp_path / "data")
    config.init_from, config.reward_model, config.rounds = "SFT", "REWARD", 2
    return config


def test_every_stage_runs_on_the_mesh_of_its_config(runs, config, tmp_path):
    config.pairs.mesh, config.dpo.mesh = (2, -1, 1), (1, 4, 2)
    iterate.run(config, str(tmp_path / "run"))
    sampling = {"data": 2, "fsdp": 4, "tensor": 1}
    training = {"data": 1, "fsdp": 4, "tensor": 2}
    assert meshes == [sampling, training] * 2


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


def test_functions_of_rewards_need_no_reward_model(runs, config, tmp_path):
    """The published variant: configs/variants/online_dpo.py."""
    online = online_dpo.get_config("tiny")
    online.data.path, online.init_from = config.data.path, "SFT"
    iterate.run(online, str(tmp_path / "run"))
    labelled = [c for name, c in runs if name.startswith("pairs")]
    assert len(labelled) == 3
    assert {c.rewards for c in labelled} == {base.IS_RIGHT}
    assert {c.reward_model for c in labelled} == {""}


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
    def die(config, workdir):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(dpo, "run", die)
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
        ({"data": {"path": "nowhere"}}, "There is no file or folder nowhere"),
        ({"dpo": {"loss": "ppo"}}, "dpo_1: loss='ppo' must be one of"),
        ({"dpo": {"eval_prompts": "x"}}, "dpo_1: There is no file x"),
        ({"pairs": {"rule": "best"}}, "pairs_1: rule='best' must be one of"),
        ({"pairs": {"mesh": (3, 1, 1)}}, r"pairs_1: mesh=\(3, 1, 1\) does not make"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(
    fields, message, runs, config, tmp_path
):
    config.update(fields)
    with pytest.raises((ValueError, OSError), match=message):
        iterate.run(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    assert not runs
