"""Collecting: tasks for people, or raw comparisons of the testbed's annotators."""

import dataclasses
import shutil

import pytest

from configs import prepare_comparisons as prepare_config
from rlhf_jax.data.annotation.tasks import read_tasks
from rlhf_jax.data.records import Comparison, Prompt, read_records, write_records
from rlhf_jax.data.tokenizers.tokenizer import load_tokenizer
from rlhf_jax.stages import collect, prepare_comparisons
from rlhf_jax.training.workdir import read_summary


def test_people_get_every_pair_with_its_settings_and_tasks_that_measure_them(
    stage_config, tmp_path
):
    config = stage_config("collect", annotator="people", num_responses=2)
    config.known_share = config.repeat_share = 0.25
    collect.run(config, tmp_path)
    assert not (tmp_path / "comparisons.jsonl").exists()

    tasks = read_tasks(tmp_path / "tasks.jsonl").values()
    known = [task for task in tasks if task.known_answer]
    repeats = [task for task in tasks if task.repeat_of]
    pairs = [task for task in tasks if not task.known_answer and not task.repeat_of]
    assert len(known) == len(repeats) == round(len(pairs) / 4) > 0
    assert len({task.prompt.id for task in pairs}) == len(pairs)
    for task in pairs:
        assert (task.settings_a["sample"], task.settings_b["sample"]) == (0, 1)
        assert task.settings_a["temperature"] == config.temperature


def test_raw_comparisons_become_a_clean_set_that_still_knows_what_was_cut(
    stage_config, data_folder, tmp_path
):
    raw, clean = tmp_path / "raw", tmp_path / "clean"
    collect.run(stage_config("collect", num_responses=2), str(raw))
    comparisons = read_records(raw / "comparisons.jsonl", Comparison)
    summary = read_summary(raw)
    assert len(comparisons) == summary["pairs"] == summary["prompts"]
    assert "tie" in {c.preference for c in comparisons}
    ended = [c.ended_a for c in comparisons] + [c.ended_b for c in comparisons]
    assert 0 < ended.count(False) == summary["cut at the limit"] < len(ended)
    stops = load_tokenizer(data_folder / "tokenizer").stop_ids
    assert all((c.tokens_a[-1] in stops) == c.ended_a for c in comparisons)

    config = prepare_config.get_config("tiny")
    config.comparisons = str(raw / "comparisons.jsonl")
    config.tokenizer = str(data_folder / "tokenizer")
    prepare_comparisons.run(config, str(clean))
    kept = [
        comparison
        for name in ("comparisons", "comparisons_test")
        for comparison in read_records(clean / f"{name}.jsonl", Comparison)
    ]
    assert "tie" not in {c.preference for c in kept}
    assert any(not response.ended for c in kept for response in c.responses)
    assert all(comparison in comparisons for comparison in kept)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"annotator": "robots"}, "annotator='robots' must be 'testbed' or 'people'"),
        ({"repeat_share": 0.6}, r"repeat_share=0.6 must be from 0 to 0.5"),
        (
            {"annotator": "people"},
            r"known_share=0.1 needs .* set known_comparisons=FILE",
        ),
    ],
)
def test_what_cannot_be_asked_is_refused_before_any_response(
    fields, message, stage_config, tmp_path, data_folder, monkeypatch
):
    monkeypatch.setattr(collect.weights, "load_policy", pytest.fail)
    prompts = read_records(data_folder / "comparison_prompts.jsonl", Prompt)
    of_people = [dataclasses.replace(prompt, task=None) for prompt in prompts]
    write_records(tmp_path / "prompts.jsonl", of_people)
    config = stage_config("collect", prompts=str(tmp_path / "prompts.jsonl"), **fields)
    with pytest.raises(ValueError, match=message):
        collect.run(config, tmp_path / "run")


def test_a_folder_without_prompts_to_compare_has_those_of_training(
    stage_config, tmp_path, data_folder, monkeypatch
):
    def answer(prompts, *_):
        raise RuntimeError(f"asked {len(prompts)}")

    monkeypatch.setattr(collect, "encode_prompts", answer)
    own = shutil.copytree(data_folder, tmp_path / "own")
    config = stage_config("collect")
    config.data.path = str(own)
    for name in ("comparison_prompts.jsonl", "prompts.jsonl"):
        count = len(read_records(own / name, Prompt))
        with pytest.raises(RuntimeError, match=f"asked {count}$"):
            collect.run(config, tmp_path / name)
        (own / "comparison_prompts.jsonl").unlink(missing_ok=True)
