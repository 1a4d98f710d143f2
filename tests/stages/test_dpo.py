"""DPO: every loss trains, the reference counts as it should, mistakes are refused."""

import json

import jax
import numpy as np
import pytest

from rlhf_jax.data.records import Comparison, Prompt, read_records, write_records
from rlhf_jax.models.presets import num_parameters, preset
from rlhf_jax.stages import dpo
from rlhf_jax.training.metrics import Writer, read_metrics

# Neither evaluation nor checkpoint nor SFT term: only what a test is about.
BARE = {"eval_every": 0, "save_every": 0, "beta_sft": 0.0}
GROUPS = ("rewards", "logps", "lengths")


def run(config, workdir):
    dpo.run(config, str(workdir))
    return read_metrics(workdir)


@pytest.mark.parametrize(
    "fields",
    [
        {"loss": "dpo", "label_smoothing": 0.1},
        {"loss": "robust", "label_smoothing": 0.1},
        {"loss": "ipo"},
        {"loss": "simpo", "beta": 2.0, "gamma": 0.5},
        {"loss": "length_regularised", "alpha": 0.01},
        {"loss": "kto", "reference": "on_the_fly", "desirable_weight": 1.3},
        {"loss": "orpo"},
    ],
    ids=lambda fields: fields["loss"],
)
def test_every_loss_trains(fields, stage_config, few_pairs, tmp_path, monkeypatch):
    if fields["loss"] in ("simpo", "orpo"):  # which never ask the reference

        def refuse(*args):
            raise AssertionError("There is no reference.")

        monkeypatch.setattr(dpo, "reference_logprobs", refuse)
    config = stage_config("dpo", pairs=few_pairs, epochs=2, **BARE, **fields)
    first, second = run(config, tmp_path / "run")
    assert second["optim/skipped"] == 0
    assert second["logps/chosen"] != first["logps/chosen"]
    assert {
        "loss/dpo",
        *(f"rewards/{x}" for x in ("chosen", "rejected", "margins", "accuracies")),
        *(
            f"{x}/{side}"
            for x in ("logps", "lengths")
            for side in ("chosen", "rejected")
        ),
    } <= set(second)


def test_on_the_fly_equals_cached_through_the_stage_and_holds_more_memory(
    stage_config, few_pairs, tmp_path, monkeypatch
):
    held = []
    write = Writer.write

    def write_and_weigh(self, *arguments):
        held.append(sum(x.nbytes for x in jax.live_arrays()))
        return write(self, *arguments)

    monkeypatch.setattr(Writer, "write", write_and_weigh)
    lines = {}
    for reference in ("cached", "on_the_fly"):
        config = stage_config(
            "dpo", pairs=few_pairs, epochs=2, reference=reference, **BARE
        )
        lines[reference] = run(config, tmp_path / reference)
    for a, b in zip(*lines.values(), strict=True):
        for name in ("loss/dpo", "rewards/margins"):
            np.testing.assert_allclose(a[name], b[name], rtol=0, atol=1e-5)
    weights = 4 * num_parameters(preset("micro"))
    assert held[-1] - held[1] > 0.5 * weights


def test_training_raises_the_chosen_over_the_rejected(
    stage_config, few_pairs, tmp_path
):
    config = stage_config("dpo", pairs=few_pairs, epochs=8, **BARE)
    config.optimizer.learning_rate = 1e-2
    lines = run(config, tmp_path / "run")
    assert lines[0]["rewards/margins"] == pytest.approx(0.0, abs=1e-4)
    assert lines[-1]["rewards/margins"] > 1.0
    assert lines[-1]["rewards/accuracies"] == 1.0
    gap = [line["logps/chosen"] - line["logps/rejected"] for line in lines]
    assert gap[-1] - gap[0] > 10.0  # beta is 0.1
    assert lines[-1]["loss/dpo"] < 0.5 < np.log(2)


def test_evaluation_measures_kl_on_fresh_samples(stage_config, few_pairs, tmp_path):
    """At a step size of almost 0 the policy is its reference still: KL 0."""
    config = stage_config("dpo", pairs=few_pairs, epochs=2, **BARE)
    config.update(eval_every=1, num_eval_prompts=5, num_samples=3)
    config.max_response_tokens = 100
    config.optimizer.learning_rate = 1e-12
    first, second = run(config, tmp_path / "run")
    assert abs(first["eval/kl"]) < 1e-3
    assert first["eval/response_length"] == second["eval/response_length"] > 1
    lines = (tmp_path / "run" / "samples.jsonl").read_text().splitlines()
    samples = [json.loads(line) for line in lines]
    assert [s["step"] for s in samples] == [1, 1, 1, 2, 2, 2]
    assert samples[0]["response"] == samples[3]["response"]
    assert {type(sample["ended"]) for sample in samples} == {bool}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss": "ppo"}, "loss='ppo' must be one of dpo, robust, ipo"),
        ({"beta": 0.0}, "beta=0.0 must be above 0"),
        ({"beta": -0.1}, "beta=-0.1 must be above 0"),
        ({"label_smoothing": 0.5}, "label_smoothing=0.5 must be from 0 to below 0.5"),
        ({"label_smoothing": -0.1}, "label_smoothing=-0.1"),
        ({"loss": "ipo", "label_smoothing": 0.1}, "needs loss dpo or robust"),
        ({"loss": "robust"}, "without label_smoothing is 'dpo'"),
        ({"gamma": 1.0}, "gamma=1.0 needs loss='simpo'"),
        ({"loss": "simpo", "gamma": -1.0}, "gamma=-1.0 must be at least 0"),
        ({"alpha": 0.1}, "alpha=0.1 needs loss='length_regularised'"),
        ({"loss": "length_regularised"}, "needs alpha > 0"),
        ({"loss": "simpo", "reference": "on_the_fly"}, "simpo' has no reference"),
        ({"loss": "orpo", "reference": "on_the_fly"}, "orpo' has no reference"),
        ({"loss": "orpo", "reference_cache": "x.npz"}, "a loss with a reference"),
        ({"loss": "kto"}, "set reference='on_the_fly'"),
        (
            {"loss": "kto", "reference": "on_the_fly", "batch_size": 1},
            "set batch_size to 2",
        ),
        ({"desirable_weight": 2.0}, "need loss='kto', not 'dpo'"),
        ({"reference": "none"}, "'cached' or 'on_the_fly'"),
        ({"reference": "on_the_fly", "reference_cache": "x"}, "reference_cache='x'"),
        ({"beta_sft": -1.0}, "beta_sft=-1.0 must be at least 0"),
        ({"microbatches": 3}, "batch_size=8 does not divide .* in 3 parts"),
    ],
)
def test_options_that_cannot_work_are_refused_before_anything_is_written(
    fields, message, stage_config, tmp_path
):
    with pytest.raises(ValueError, match=message):
        dpo.run(stage_config("dpo", **fields), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_cache_of_another_reference_is_refused(stage_config, few_pairs, tmp_path):
    """Random weights of another seed stand for another reference."""
    cache = str(tmp_path / "shared.npz")
    config = stage_config("dpo", pairs=few_pairs, reference_cache=cache, **BARE)
    run(config, tmp_path / "a")
    run(config, tmp_path / "b")  # the same: taken
    config.seed = 1
    with pytest.raises(ValueError, match=r"shared.npz .* another reference\. Delete"):
        run(config, tmp_path / "c")


def test_files_without_a_usable_pair_say_why(stage_config, tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    with pytest.raises(ValueError, match=r"empty.jsonl is empty: "):
        run(stage_config("dpo", pairs=str(empty)), tmp_path / "a")
    prompt = Prompt("p", ({"role": "user", "content": "Hello."},))
    useless = [
        Comparison(prompt, "Hi.", "Hi.", "a"),
        Comparison(prompt, "A", "B", "tie"),
    ]
    write_records(tmp_path / "useless.jsonl", useless)
    with pytest.raises(ValueError, match=r"identical responses 1; tie 1"):
        run(stage_config("dpo", pairs=str(tmp_path / "useless.jsonl")), tmp_path / "b")


@pytest.fixture(scope="module")
def few_pairs(data_folder, tmp_path_factory):
    """Eight comparisons: one batch an epoch."""
    comparisons = read_records(data_folder / "comparisons.jsonl", Comparison)
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    write_records(path, [c for c in comparisons if c.preference != "tie"][:8])
    return str(path)
