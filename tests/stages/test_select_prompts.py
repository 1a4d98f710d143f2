"""Prompts are kept by the variance of what PPO would be rewarded with."""

import json

import numpy as np
import pytest

from rlhf_jax.data.records import Prompt, read_records
from rlhf_jax.stages import select_prompts


def run(config, workdir) -> list[dict]:
    """The lines of rollouts.jsonl."""
    select_prompts.run(config, str(workdir))
    lines = (workdir / "rollouts.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_prompts_whose_scores_vary_too_little_are_dropped(
    stage_config, data_folder, tmp_path
):
    config = stage_config("select_prompts", samples_per_prompt=2, epsilon=0.01)
    rollouts = run(config, tmp_path / "run")
    kept = [r["id"] for r in rollouts if np.var(r["scores"]) >= 0.01]
    assert 0 < len(kept) < len(rollouts)
    selected = read_records(tmp_path / "run" / "prompts.jsonl", Prompt)
    assert [prompt.id for prompt in selected] == kept
    everything = read_records(data_folder / "prompts.jsonl", Prompt)
    assert [r["id"] for r in rollouts] == [prompt.id for prompt in everything]
    report = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert report["kept"] == len(kept)
    assert report["dropped"] == len(rollouts) - len(kept)
    assert sum(n["kept"] for n in report["by intent"].values()) == len(kept)
    assert sum(report["variance histogram"]["counts"]) == len(rollouts)

    ended = np.array([rollout["ended"] for rollout in rollouts])
    assert ended.shape == (len(rollouts), 2)
    config.missing_end_penalty = 0.0
    free = run(config, tmp_path / "free")
    both = [np.array([line["scores"] for line in lines]) for lines in (rollouts, free)]
    np.testing.assert_allclose(both[0], both[1] - ~ended, rtol=0, atol=1e-6)
    assert 0 < ended.sum() < ended.size

    config.epsilon = 1e6
    with pytest.raises(ValueError, match="the largest is"):
        select_prompts.run(config, str(tmp_path / "none"))
    config.samples_per_prompt = 1
    with pytest.raises(ValueError, match="2 or more"):
        select_prompts.run(config, str(tmp_path / "one"))
