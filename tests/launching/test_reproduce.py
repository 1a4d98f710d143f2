"""Which runs a claim needs, and what their summaries say of it."""

import functools
import json
from pathlib import Path

import pytest

from configs import paper
from configs.variants import study as variants
from rlhf_jax.evaluation.claims import Effect
from rlhf_jax.evaluation.report.claims import plot_frontier, plot_training
from rlhf_jax.evaluation.report.runs import find_runs, group_runs
from rlhf_jax.launching import reproduce
from rlhf_jax.launching.reproduce import compare, markdown, seed_jobs

ROOT = Path(__file__).parents[2]


def summarise(folder, run, summary):
    (folder / run).mkdir(parents=True)
    (folder / run / "summary.json").write_text(json.dumps(summary))


MEASURE = paper.Measure(1, "a minus b", "a:models.x", "b:models.x", "below")


def test_seeds_are_compared_one_by_one(tmp_path):
    for seed, ours, theirs in ((0, 1.0, 2.0), (1, 5.0, 7.0), (2, 0.0, 3.0)):
        summarise(tmp_path / f"seed{seed}", "a", {"models": {"x": ours}})
        summarise(tmp_path / f"seed{seed}", "b", {"models": {"x": theirs}})
    found = compare(MEASURE, tmp_path, (0, 1, 2))
    assert found["ours_mean"] == 2.0 and found["theirs_mean"] == 4.0
    assert found["effect"]["values"] == (-1.0, -2.0, -3.0)
    # -2 +- 4.303 / sqrt(3): three seeds do not show it.
    assert found["effect"]["high"] == pytest.approx(-2 + 2.484138)
    assert found["verdict"] == "not shown"
    assert "| 1 | a minus b | 3 | 2 | 4 | -2 [-4.48, +0.484]" in markdown([found])


def test_a_missing_run_leaves_its_measure_out(tmp_path):
    summarise(tmp_path / "seed0", "a", {"models": {"x": 1.0}})
    assert compare(MEASURE, tmp_path, (0,)) is None


@functools.cache
def jobs_of(study, tmp_path):
    config = study.get_config()
    config.claims = tuple({measure.claim for measure in study.MEASURES})
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


@pytest.mark.parametrize("study", [paper, variants], ids=lambda x: x.NAME)
def test_every_measure_reads_runs_that_exist(study, folder):
    names = {job.name.removeprefix("seed3/") for job in jobs_of(study, folder)}
    for measure in study.MEASURES:
        for where in filter(None, (measure.ours, measure.theirs)):
            assert where.partition(":")[0] in names, where


def test_claims_can_be_chosen(tmp_path):
    config = paper.get_config()
    config.claims = (1,)
    names = [
        job.name for job in reproduce.seed_jobs(tmp_path / "seed0", 0, config, paper)
    ]
    assert "seed0/evaluate_reward_unbalanced" in names
    assert "seed0/ppo" not in names
    config.claims = (5, 6)
    jobs = reproduce.seed_jobs(tmp_path / "seed0", 0, config, paper)
    (evaluation,) = (job for job in jobs if job.name == "seed0/evaluate")
    models = [x.partition("=")[0] for x in evaluation.overrides["models"].split(",")]
    assert models == ["sft", "ppo", "dpo", "ppo_selected"]  # each once


def test_the_world_of_runs_that_are_done_stays(tmp_path, monkeypatch):
    def start(**fields):
        config = paper.get_config()
        config.claims = (1,)
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


def test_it_ends_in_tables_and_plots(tmp_path):
    rows = [MEASURE._asdict() | {"ours_mean": 1.0, "theirs_mean": 2.0}]
    effect = Effect.of([-1.0, -2.0, -3.0])._asdict()
    rows[0] |= {"effect": effect, "verdict": "holds"}
    reproduce.write_results(tmp_path / "results", "claims", rows, "a table")
    names = {path.name for path in (tmp_path / "results").iterdir()}
    assert names == {"claims.md", "claims.json", "claims.png"}


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
