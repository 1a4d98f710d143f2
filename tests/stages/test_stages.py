"""Every stage runs, resumes to the same bits, and refuses what cannot work."""

import functools
import importlib
import json
import pkgutil

import jax
import numpy as np
import pytest

from rlhf_jax import algorithms
from rlhf_jax.data.sources import tokenizer_fingerprint
from rlhf_jax.data.testbed.skills import SKILLS
from rlhf_jax.training.checkpoints import Checkpoints
from rlhf_jax.training.metrics import MEASURED, read_metrics
from rlhf_jax.training.weights import load_model
from rlhf_jax.training.workdir import read_summary

TRAINED = [module.name for module in pkgutil.iter_modules(algorithms.__path__)]


def run(config, workdir):
    importlib.import_module(f"rlhf_jax.stages.{config.stage}").run(config, str(workdir))
    return workdir


def numbers(workdir):
    return [
        {k: v for k, v in line.items() if not k.startswith(MEASURED)}
        for line in read_metrics(workdir)
    ]


@pytest.fixture(scope="module")
def whole(stage_config, tmp_path_factory):
    """`whole("sft")`: the workdir of an uninterrupted run, made once."""
    return functools.cache(
        lambda stage: run(
            stage_config(stage, save_every=1), tmp_path_factory.mktemp("whole") / stage
        )
    )


@pytest.mark.parametrize("stage", TRAINED)
def test_a_run_leaves_its_files(stage, whole):
    workdir = whole(stage)
    names = {path.name for path in workdir.iterdir()}
    assert {
        "config.json",
        "metrics.jsonl",
        "events",
        "checkpoints",
        "summary.json",
    } <= (names)
    lines = numbers(workdir)
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    assert all(np.isfinite(x) for line in lines for x in line.values())
    assert json.loads((workdir / "summary.json").read_text())
    checkpoints = Checkpoints(workdir, keep=None)
    assert checkpoints.latest_step() == len(lines)
    recorded = checkpoints.meta(len(lines))["models"].values()
    assert {x["tokenizer"] for x in recorded} == {tokenizer_fingerprint(workdir)}
    assert load_model(workdir) is not None
    samples = (workdir / "samples.jsonl").read_text().splitlines()
    assert {"step", "prompt", "response", "reward"} <= set(json.loads(samples[0]))


def test_the_summary_says_what_was_too_long(stage_config, whole, tmp_path):
    config = stage_config("sft", max_tokens=40, too_long="truncate_end")
    run(config, tmp_path)
    told = read_summary(tmp_path)["dialogues"]
    assert 0 < told["kept without its end"] < told["used"]
    assert set(read_summary(whole("dpo"))["pairs"]) >= {"used"}


@pytest.mark.parametrize("stage", TRAINED)
def test_a_resume_gives_the_bits_of_an_uninterrupted_run(
    stage, stage_config, whole, tmp_path, monkeypatch
):
    config = stage_config(stage, save_every=1)

    # Die right after the first checkpoint.
    save = Checkpoints.save

    def save_and_die(self, step, items, meta, *numbers):
        save(self, step, items, meta, *numbers)
        self.wait()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "killed")
    assert len(read_metrics(tmp_path / "killed")) == 1
    resumed = run(config, tmp_path / "killed")

    assert len(numbers(resumed)) > 1
    assert numbers(resumed) == numbers(whole(stage))
    for item in ("model", "value") if stage == "ppo" else ("model",):
        a, b = (load_model(folder, item=item) for folder in (whole(stage), resumed))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_gradient_accumulation_changes_no_step(stage, stage_config, whole, tmp_path):
    parts = run(stage_config(stage, microbatches=4), tmp_path / "parts")
    for a, b in zip(numbers(whole(stage)), numbers(parts), strict=True):
        assert a.keys() == b.keys()
        # Before DPO's first update the policy is the reference, and rounding alone says
        # which of two rewards is higher.
        equal = "rewards/margins" in a and abs(a["rewards/margins"]) < 1e-5
        for name in a.keys() - ({"rewards/accuracies"} if equal else set()):
            np.testing.assert_allclose(
                a[name], b[name], rtol=2e-3, atol=2e-5, err_msg=name
            )


def test_another_seed_is_another_run(stage_config, whole, tmp_path):
    other = run(stage_config("sft", seed=1), tmp_path / "other")
    assert numbers(other) != numbers(whole("sft"))


def test_collect_and_evaluate_leave_what_the_next_stage_reads(
    stage_config, whole, tmp_path
):
    policy = str(whole("sft"))
    collected = run(stage_config("collect", init_from=policy), tmp_path / "collect")
    assert (collected / "comparisons.jsonl").is_file()
    config = stage_config(
        "evaluate", models=f"sft={policy},same={policy}", num_prompts=8, batch_size=8
    )
    summary = json.loads((run(config, tmp_path / "eval") / "summary.json").read_text())
    same = summary["models"]["same"]
    # The same model with the same keys gives the same answers.
    assert same["against_baseline"]["tie"] == 1.0
    assert same["kl"] == 0.0
    assert same["quality"] == summary["models"]["sft"]["quality"]
    assert set(same["skills"]) == set(SKILLS)
    assert 0 <= same["skills_right"] <= 1 and same["skills_logprob"] < 0
    lines = (tmp_path / "eval" / "answers_same.jsonl").read_text().splitlines()
    ended = [json.loads(line)["ended"] for line in lines]
    assert same["ended"] == sum(ended) / len(ended) < 1  # so new a model seldom stops
