"""Collecting for people: the stage leaves their tasks and ends."""

import dataclasses

import pytest

from rlhf_jax.data.annotation.tasks import read_tasks
from rlhf_jax.data.records import Prompt, read_records, write_records
from rlhf_jax.stages import collect


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
