"""Features of the reward stage alone: the split, the best model, the report."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from configs.reward import get_config
from rlhf_jax.data import sources
from rlhf_jax.data.batching import BatchOrder, packed_pairs
from rlhf_jax.data.encoding import encode_pairs
from rlhf_jax.data.records import Comparison, read_records
from rlhf_jax.evaluation.held_out import score_pairs
from rlhf_jax.stages import evaluate_reward, reward
from rlhf_jax.training.checkpoints import Checkpoints
from rlhf_jax.training.metrics import read_metrics
from rlhf_jax.training.weights import load_model

HH = Path(__file__).parents[2] / ".." / "shared" / "data" / "hh_rlhf_harmless"


def pairs(*prompts):
    return [([p], [1] * (i + 2), [2]) for i, p in enumerate(prompts)]


def test_validation_takes_all_pairs_of_a_prompt_or_none():
    given = pairs(*(i // 3 for i in range(60)))
    train, validation = reward.split_by_prompt(given, 0.2, seed=0)
    assert sorted(train + validation) == sorted(given)
    assert len({pair[0][0] for pair in validation}) == 4
    assert not {p[0][0] for p in train} & {p[0][0] for p in validation}
    assert reward.split_by_prompt(given, 0.2, seed=1)[1] != validation


@pytest.mark.parametrize(("share", "prompts"), [(0.0, 9), (1.0, 9), (0.1, 1)])
def test_a_split_that_leaves_one_side_empty_is_refused(share, prompts):
    with pytest.raises(ValueError, match="validation_share"):
        reward.split_by_prompt(pairs(*range(prompts)), share, seed=0)


@pytest.fixture(scope="module")
def run_of():
    """Runs the stage with given validation accuracies instead of measured ones."""

    def run(config, workdir, accuracies, monkeypatch):
        found = iter(accuracies)

        def validate(*_):
            return {"validation/accuracy": next(found)}

        monkeypatch.setattr(reward, "validate", validate)
        reward.run(config, str(workdir))
        return workdir

    return run


FIELDS = {"epochs": 2, "eval_every": 1, "save_every": 1, "patience": 2}


def test_training_stops_and_hands_on_the_best_model(
    run_of, stage_config, tmp_path, monkeypatch
):
    """The third evaluation is the best; the fourth and fifth are not."""
    config = stage_config("reward", keep_checkpoints=9, **FIELDS)
    accuracies = [0.5, 0.4, 0.6, 0.55, 0.6, 0.9, 0.9]
    with monkeypatch.context() as patch:
        whole = run_of(config, tmp_path / "whole", accuracies, patch)
    assert [line["step"] for line in read_metrics(whole)] == [1, 2, 3, 4, 5]

    checkpoints = Checkpoints(whole, keep=None)
    handed_on = load_model(whole)
    like = {"model": handed_on}
    third, fourth = (checkpoints.restore(step, like)["model"] for step in (3, 4))
    same, other = (
        np.asarray(model.head.kernel[...] - handed_on.head.kernel[...])
        for model in (third, fourth)
    )
    assert np.abs(same).max() == 0 < np.abs(other).max()
    assert third.offset[...] == 0 != handed_on.offset[...]

    # Killed while it waited: the best model and the wait come from the checkpoint.
    save = Checkpoints.save

    def save_and_die(self, step, items, meta, *numbers):
        save(self, step, items, meta, *numbers)
        self.wait()
        if step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            run_of(config, tmp_path / "killed", accuracies, patch)
    with monkeypatch.context() as patch:
        resumed = run_of(config, tmp_path / "killed", accuracies[4:], patch)
    assert Checkpoints(resumed, keep=None).latest_step() == 5
    for a, b in zip(
        jax.tree.leaves(handed_on), jax.tree.leaves(load_model(resumed)), strict=True
    ):
        np.testing.assert_array_equal(a, b)

    # Killed after its last checkpoint: nothing is trained or centred again.
    (resumed / "summary.json").unlink()
    with monkeypatch.context() as patch:
        run_of(config, resumed, [], patch)
    summary = json.loads((resumed / "summary.json").read_text())
    assert summary["step"] == 5
    assert "eval/accuracy" in summary and "loss/ranking" in summary


def test_without_eval_every_the_end_alone_is_measured(
    run_of, stage_config, tmp_path, monkeypatch
):
    config = stage_config("reward", eval_every=0)
    found = read_metrics(run_of(config, tmp_path / "run", [0.6], monkeypatch))
    measured = ["validation/accuracy" in line for line in found]
    assert len(measured) > 1 and measured == [*[False] * (len(measured) - 1), True]


def test_scores_are_centred_on_training_responses_and_the_report_is_told(
    stage_config, tmp_path, data_folder
):
    workdir = tmp_path / "run"
    config = stage_config("reward", num_centring_pairs=1000)
    reward.run(config, str(workdir))
    tokenizer = sources.open_tokenizer(config.data, data_folder, "", workdir)
    comparisons = read_records(data_folder / "comparisons.jsonl", Comparison)
    _, encoded, _ = encode_pairs(
        comparisons,
        tokenizer=tokenizer,
        max_prompt_tokens=config.max_prompt_tokens,
        max_response_tokens=config.max_response_tokens,
    )
    train, _ = reward.split_by_prompt(encoded, config.validation_share, config.seed)
    padding = {"pad_id": tokenizer.pad_id, "multiple": 128, "batch_size": 8}
    found = score_pairs(load_model(workdir), train, **padding)
    np.testing.assert_allclose(found.mean(), 0.0, atol=1e-6)

    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["pairs"]["train"] == len(train)
    needed = ("accuracy", "accuracy_low", "accuracy_high", "always_longer")
    needed += ("length_correlation", "score_std", "calibration_error")
    needed += ("true_accuracy", "true_length_correlation")
    assert {f"eval/{name}" for name in needed} <= set(summary)
    report = {path.name for path in (workdir / "evaluation").iterdir()}
    assert report == {"report.json", "report.md", "reliability.png", "errors.jsonl"}

    # The same checkpoint on the same pairs, by the evaluation's own command.
    again = stage_config("evaluate_reward", reward_model=str(workdir))
    evaluate_reward.run(again, str(tmp_path / "again"))
    found = json.loads((tmp_path / "again" / "summary.json").read_text())
    for name in ("accuracy", "score_std", "length_correlation", "true_accuracy"):
        np.testing.assert_allclose(found[name], summary[f"eval/{name}"], rtol=1e-5)


def test_padding_is_under_fifteen_percent_of_real_conversations(tmp_path):
    if not HH.is_dir():
        pytest.skip("hh-rlhf is not here.")
    config = get_config("hh")
    config.data.path = str(HH)
    data = sources.open_data(config.data, tmp_path)
    tokenizer = sources.open_tokenizer(config.data, data, "", tmp_path)
    _, encoded, _ = encode_pairs(
        read_records(data / "comparisons.jsonl", Comparison),
        tokenizer=tokenizer,
        max_prompt_tokens=config.max_prompt_tokens,
        max_response_tokens=config.max_response_tokens,
        too_long=config.too_long,
    )
    order = BatchOrder(
        len(encoded),
        batch_size=config.batch_size,
        seed=0,
        lengths=[sum(map(len, pair)) for pair in encoded],
        window=reward.LENGTH_WINDOW,
    )
    masks = [
        packed_pairs(
            [encoded[i] for i in order.indices(step)],
            pad_id=tokenizer.pad_id,
            multiple=config.pad_to_multiple,
            batch_size=config.batch_size,
        ).mask
        for step in range(order.batches_per_epoch)
    ]
    real, total = sum(mask.sum() for mask in masks), sum(mask.size for mask in masks)
    assert 1 - real / total < 0.15
