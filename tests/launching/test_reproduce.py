"""Which runs a claim needs, and that what it measures is in their summaries."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest

from configs import paper
from configs.variants import study as variants
from rlhf_jax.evaluation.report.claims import plot_frontier, plot_training
from rlhf_jax.evaluation.report.runs import find_runs, group_runs
from rlhf_jax.launching import reproduce
from rlhf_jax.launching.reproduce import seed_jobs

ROOT = Path(__file__).parents[2]


def summarise(folder, run, summary):
    (folder / run).mkdir(parents=True)
    (folder / run / "summary.json").write_text(json.dumps(summary))


@functools.cache
def jobs_of(study, tmp_path):
    config = study.get_config()
    config.claims = tuple(claim.number for claim in study.CLAIMS)
    return seed_jobs(tmp_path / "seed3", 3, config, study)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("study")


@pytest.mark.parametrize("study", [paper, variants], ids=lambda x: x.NAME)
def test_a_run_comes_after_what_it_starts_from(study, folder):
    seen = set()
    for job in jobs_of(study, folder):
        assert seen.issuperset(job.after), job.name
        seen.add(job.name)
    assert "seed3/evaluate" in seen


@pytest.mark.parametrize("study", [paper, variants], ids=lambda x: x.NAME)
def test_every_run_takes_its_fields(study, folder):
    for job in jobs_of(study, folder):
        config = job.resolve()
        assert config.seed == 3, job.name
        if "data" in config:
            assert config.data.testbed.seed == 3, job.name
        assert "@" not in json.dumps(job.overrides, default=str), job.name


class Asked:
    """A world that notes what is asked of its runs."""

    def __init__(self):
        self.runs, self.policies = set(), set()

    def number(self, where):
        run, _, keys = where.partition(":")
        self.runs.add(run)
        if run == "evaluate":
            self.policies.add(keys.split(".")[1])
        return 1.0 + len(self.runs) + 0.1 * len(self.policies)

    def series(self, run, key):
        self.runs.add(run)
        return np.array([1.0, 2.0, 3.0, 5.0])


@pytest.mark.parametrize("study", [paper, variants], ids=lambda x: x.NAME)
def test_every_claim_has_the_runs_that_it_measures(study, tmp_path):
    for claim in study.CLAIMS:
        config = study.get_config()
        config.claims = (claim.number,)
        jobs = {
            job.name: job for job in seed_jobs(tmp_path / "seed3", 3, config, study)
        }
        asked = Asked()
        for measure in (claim.primary, *claim.others, *claim.checks):
            for quantity in filter(None, (measure.ours, measure.theirs)):
                if callable(quantity):
                    quantity(asked)
                else:
                    asked.number(quantity)
        assert {f"seed3/{run}" for run in asked.runs} <= set(jobs), claim.title
        if asked.policies:
            models = jobs["seed3/evaluate"].overrides["models"].split(",")
            evaluated = {model.partition("=")[0] for model in models}
            assert asked.policies <= evaluated, claim.title
            # Nothing is trained that the claim does not show.
            assert evaluated == asked.policies | {"sft"}, claim.title


def test_nine_claims_are_predicted():
    assert [claim.number for claim in paper.CLAIMS] == list(range(1, 10))
    config = paper.get_config("full")
    assert set(config.claims) == set(range(1, 10)) and len(config.seeds) >= 8
    assert all(claim.prediction for claim in paper.CLAIMS)
    assert not paper.get_config("quick").verdicts


def test_claims_can_be_chosen(tmp_path):
    config = paper.get_config()
    config.claims = (9,)
    names = [
        job.name for job in reproduce.seed_jobs(tmp_path / "seed0", 0, config, paper)
    ]
    assert "seed0/reward" in names and "seed0/ppo" not in names
    config.claims = (4, 6)
    jobs = reproduce.seed_jobs(tmp_path / "seed0", 0, config, paper)
    (evaluation,) = (job for job in jobs if job.name == "seed0/evaluate")
    models = [x.partition("=")[0] for x in evaluation.overrides["models"].split(",")]
    assert models == [  # each once
        "sft", "ppo", "ppo_no_sft_near", "ppo_no_sft", "ppo_selected", "ppo_random",
    ]  # fmt: skip
    config.claims = (4, 10)
    with pytest.raises(ValueError, match="no claim 10; the study has 1 to 9"):
        reproduce.seed_jobs(tmp_path / "seed0", 0, config, paper)


def test_the_world_of_runs_that_are_done_stays(tmp_path, monkeypatch):
    def start(**fields):
        config = paper.get_config()
        config.claims = (9,)
        config.update_from_flattened_dict(fields)
        reproduce.run(config, str(tmp_path / "paper"), study=paper)

    class CheckedError(Exception):
        pass

    def checked(jobs):
        raise CheckedError

    monkeypatch.setattr(reproduce, "check_jobs", checked)
    for fields in ({"seeds": (0,)}, {"seeds": (1,), "data.vocab_size": 900}):
        with pytest.raises(CheckedError):  # nothing is done yet
            start(**fields)
    summarise(tmp_path / "paper" / "seed1", "sft", {})
    with pytest.raises(CheckedError):
        start(**{"seeds": (1, 2), "workers": 1, "data.vocab_size": 900})
    with pytest.raises(ValueError, match=r"config\.data\.vocab_size: 900 -> 800"):
        start(**{"seeds": (1, 2), "data.vocab_size": 800})


def test_workers_per_device_reach_the_jobs(tmp_path, monkeypatch):
    config = paper.get_config()
    config.claims = config.seeds = ()
    config.workers = 2
    calls = []

    def run_jobs(jobs, **fields):
        calls.append(fields)
        raise KeyboardInterrupt

    monkeypatch.setattr(reproduce, "run_jobs", run_jobs)
    with pytest.raises(KeyboardInterrupt):
        reproduce.run(config, str(tmp_path), study=paper, workers_per_device=3)
    assert calls == [{"workers": 2, "workers_per_device": 3}]


def test_tables_alone_need_three_files_a_run_and_train_nothing(tmp_path, monkeypatch):
    config = paper.get_config()
    config.claims = (9,)
    monkeypatch.setattr(reproduce, "run_jobs", None)
    bags = {"eval/bag_of_words": 0.55, "eval/bag_of_bigrams": 0.57}
    for seed, accuracy in enumerate((0.7, 0.76)):  # seed 2 is not done
        folder = tmp_path / f"seed{seed}"
        summary = {"eval/accuracy": accuracy, "eval/always_longer": 0.6} | bags
        summarise(folder, "reward", summary)
        (folder / "reward" / "config.json").write_text(
            json.dumps({"config": {"stage": "reward", "seed": seed}})
        )
        (folder / "reward" / "metrics.jsonl").write_text("")
    reproduce.run(config, str(tmp_path), study=paper, tables_only=True)
    (row,) = json.loads((tmp_path / "results" / "claims.json").read_text())
    np.testing.assert_allclose(row["primary"]["effect"]["values"], [0.13, 0.19])
    assert not (tmp_path / "summary.json").exists()  # nothing says that all is done


def test_policies_are_drawn_with_their_seeds(tmp_path):
    for seed in (0, 1):
        folder = tmp_path / f"seed{seed}"
        for name in ("ppo", "evaluate"):
            summary = {"models": {"ppo": evaluated(seed)}, "judge": "testbed"}
            summarise(folder, name, summary | {"baseline": "sft"})
            stage = {"stage": name, "seed": seed}
            (folder / name / "config.json").write_text(json.dumps({"config": stage}))
        lines = [
            {"step": i, "objective/kl": i / 9, "objective/scores": i + seed}
            for i in range(1, 10)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "ppo" / "metrics.jsonl").write_text(text)
    groups = group_runs(find_runs([tmp_path])[0])
    assert plot_frontier(groups, tmp_path / "frontier.png")
    assert plot_training(groups, tmp_path / "training.png")
    for name in ("frontier", "training"):
        assert (tmp_path / f"{name}.png").read_bytes()[1:4] == b"PNG"
    assert not plot_training([g for g in groups if g.stage != "ppo"], tmp_path / "x")


def evaluated(seed):
    quality = {"mean": 3.0 + seed, "low": 2.0, "high": 4.0}
    return {"checkpoint": f"ppo {seed}", "quality": quality, "kl": 1.0, "score": 0.5}
