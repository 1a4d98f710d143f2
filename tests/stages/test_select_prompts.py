"""Prompts are kept by the variance of what PPO would be rewarded with, or at random."""

import json

import numpy as np
import pytest

from rlhf_jax.data.records import Prompt, read_records
from rlhf_jax.stages import select_prompts


def run(config, workdir) -> tuple[list[str], dict]:
    """The ids of the prompts kept, and the summary."""
    select_prompts.run(config, str(workdir))
    kept = read_records(workdir / "prompts.jsonl", Prompt)
    report = json.loads((workdir / "summary.json").read_text())
    assert report["kept"] == len(kept)
    assert sum(n["kept"] for n in report["by intent"].values()) == len(kept)
    return [prompt.id for prompt in kept], report


def rollouts_of(workdir) -> list[dict]:
    lines = (workdir / "rollouts.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_prompts_whose_scores_vary_too_little_are_dropped(
    stage_config, data_folder, tmp_path, monkeypatch
):
    sample, made = select_prompts.sample, []

    def sample_and_note(*given):
        made.append(sample(*given))
        return made[-1]

    monkeypatch.setattr(select_prompts, "sample", sample_and_note)
    config = stage_config("select_prompts", samples_per_prompt=5, epsilon=0.6)
    kept, report = run(config, tmp_path / "run")
    rollouts = rollouts_of(tmp_path / "run")
    assert kept == [r["id"] for r in rollouts if np.var(r["scores"]) >= 0.6]
    assert 0 < len(kept) < len(rollouts)
    everything = read_records(data_folder / "prompts.jsonl", Prompt)
    assert [r["id"] for r in rollouts] == [prompt.id for prompt in everything]
    assert report["dropped"] == len(rollouts) - len(kept)
    assert sum(report["variance histogram"]["counts"]) == len(rollouts)
    assert report["responses"] == 5 * len(rollouts)
    # A response that was cut has 12 tokens.
    cut = sum(not ended for r in rollouts for ended in r["ended"])
    assert 12 * cut < report["tokens"] < 12 * report["responses"]
    scores = np.array([rollout["scores"] for rollout in rollouts])
    expected = select_prompts.agreement_of_halves(scores, 0.6)
    assert report["kappa of halves"] == expected and -1 < expected < 1

    ended = np.array([rollout["ended"] for rollout in rollouts])
    assert ended.shape == (len(rollouts), 5)
    config.missing_end_penalty = 0.0
    run(config, tmp_path / "free")
    free = np.array([line["scores"] for line in rollouts_of(tmp_path / "free")])
    np.testing.assert_allclose(scores, free - ~ended, rtol=0, atol=1e-6)
    assert 0 < ended.sum() < ended.size

    monkeypatch.setattr(select_prompts, "sample", lambda *_: made[0])
    config.epsilon = 1e6
    with pytest.raises(ValueError, match="the largest is"):
        select_prompts.run(config, str(tmp_path / "none"))

    # As many at random, by the same responses; then without any.
    config.update({"epsilon": 0.6, "missing_end_penalty": 1.0, "choose": "random"})
    chance, other = run(config, tmp_path / "chance")
    assert len(chance) == len(kept) and chance != kept
    assert other["responses"] == report["responses"]
    assert rollouts_of(tmp_path / "chance") == rollouts
    monkeypatch.delattr(select_prompts, "sample")
    for name, size in {
        "random_size_of": str(tmp_path / "run"),
        "random_size": 3,
    }.items():
        config.update({"random_size_of": "", name: size})
        again, free = run(config, tmp_path / name)
        assert free["responses"] == free["tokens"] == 0
        assert not (tmp_path / name / "rollouts.jsonl").exists()
        assert set(again) <= set(chance)
        assert len(again) == (3 if name == "random_size" else len(kept))
        assert free["dropped"] == len(everything) - len(again)
    config.seed, config.random_size = 1, len(kept)
    assert run(config, tmp_path / "seed")[0] != chance


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"samples_per_prompt": 1}, "2 or more"),
        ({"random_size": 3}, "are those of choose='random'"),
        ({"random_size_of": "x"}, "are those of choose='random'"),
        ({"choose": "random", "random_size": 3, "random_size_of": "x"}, "both give"),
        ({"choose": "random", "random_size": 99}, "99 prompts are to be kept"),
        ({"choose": "random", "random_size_of": "nowhere"}, "'nowhere' is not the"),
        ({"choose": "best"}, "choose='best' must be one of variance, random"),
    ],
)
def test_a_size_that_cannot_be_is_refused(fields, message, stage_config, tmp_path):
    with pytest.raises(ValueError, match=message):
        select_prompts.run(stage_config("select_prompts", **fields), str(tmp_path))


def test_kappa_of_halves_is_one_for_equal_halves_and_none_where_it_says_nothing():
    spread = np.array([0.1, 1.0, 0.1, 2.0])[:, None]
    half = spread * [-1.0, 1.0]
    kappa = select_prompts.agreement_of_halves
    assert kappa(np.hstack([half, half]), 0.5) == 1.0
    # An odd response in the middle is in neither half.
    odd = np.hstack([half, np.full((4, 1), 9.0), half])
    assert kappa(odd, 0.5) == 1.0
    assert kappa(np.hstack([half, half[::-1]]), 0.5) == -1.0
    # Three of four agree where half of them would by chance.
    last = np.array([0.1, 1.0, 0.1, 0.1])[:, None] * [-1.0, 1.0]
    assert kappa(np.hstack([half, last]), 0.5) == 0.5
    for scores, epsilon in ((half, 0.5), (odd, 0.0), (odd, 99.0)):
        assert kappa(scores, epsilon) is None
