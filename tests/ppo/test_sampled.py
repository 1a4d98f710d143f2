"""The responses of a run are counted by what they were sampled for."""

import json

import pytest

from configs import ppo
from rlhf_jax.ppo.sampled import responses_sampled

LINES = [{"draws/count": 1.0}, {"draws/count": 3.0}]


def selection(folder, stage="select_prompts"):
    """A folder with prompts, as a finished run of a stage leaves it."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"config": {"stage": stage}}))
    (folder / "summary.json").write_text(json.dumps({"responses": 320, "kept": 7}))
    return str(folder / "prompts.jsonl")


@pytest.mark.parametrize(
    ("fields", "lines", "by_use"),
    [
        ({}, [{}, {}], (64, 20, 0)),
        ({"baseline_samples": 0}, [{}, {}], (64, 20, 0)),
        ({"baseline_samples": 4}, [{}, {}], (64, 80, 0)),
        ({"baseline": "none", "samples_per_prompt": 4}, LINES, (128, 0, 0)),
        ({"baseline": "greedy", "samples_per_prompt": 4}, LINES, (128, 32, 0)),
        ({"prompts": "select_prompts"}, [{}], (32, 20, 320)),
        ({"prompts": "prepare_prompts"}, [{}], (32, 20, 0)),
        ({"prompts": "of_nobody/prompts.jsonl"}, [{}], (32, 20, 0)),
    ],
)
def test_responses_are_counted_by_use(fields, lines, by_use, tmp_path):
    config = ppo.get_config()
    config.update({"batch_size": 32} | fields)
    if "/" not in config.prompts and config.prompts:
        config.prompts = selection(tmp_path / "selection", config.prompts)
    references = 20 if config.baseline == "reference" else 0
    counts = responses_sampled(config, lines, references)
    assert tuple(counts["responses by use"].values()) == by_use
    assert counts["responses"] == sum(by_use)
