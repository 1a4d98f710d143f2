import json

import jax
import numpy as np
import pytest
from flax import nnx

from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.heads import ScoreModel
from rlhf_jax.models.presets import preset
from rlhf_jax.stages import best_of_n


@pytest.fixture
def models(monkeypatch):
    """Random models by the names of their folders."""
    config = preset("micro", vocab_size=448)
    policy = jax.jit(lambda: ChatGLM(config, rngs=nnx.Rngs(0)))()
    known = {"policy": policy, "reward": ScoreModel(policy, rngs=nnx.Rngs(1))}
    monkeypatch.setattr(best_of_n.weights, "load_model", lambda name, **_: known[name])
    monkeypatch.setattr(best_of_n.model_checks, "check_models", lambda *_, **__: None)


def test_the_score_rises_with_n_and_the_curve_starts_at_the_mean(
    models, stage_config, tmp_path
):
    config = stage_config("best_of_n", policy="policy", reward_model="reward")
    config.num_prompts, config.num_samples = 3, 4
    best_of_n.run(config, str(tmp_path))
    summary = json.loads((tmp_path / "summary.json").read_text())
    curve = summary["curve"]
    assert summary["prompts"] == 3
    assert [row["n"] for row in curve] == [1, 2, 4]
    assert curve[0]["quality"] == curve[0]["oracle"]
    for name in ("score", "oracle"):
        assert np.all(np.diff([row[name]["mean"] for row in curve]) > 0)
    assert (tmp_path / "best_of_n.png").is_file()
    assert "| 4 | 0.64 |" in (tmp_path / "best_of_n.md").read_text()


def test_a_prompt_that_comes_twice_is_one_prompt_for_the_intervals(
    models, stage_config, data_folder, tmp_path
):
    line = (data_folder / "eval_prompts.jsonl").read_text().splitlines()[0]
    path = tmp_path / "prompts.jsonl"
    copies = [json.loads(line) | {"id": str(i)} for i in range(3)]
    path.write_text("".join(json.dumps(copy) + "\n" for copy in copies))
    config = stage_config("best_of_n", policy="policy", reward_model="reward")
    config.update(prompts=str(path), num_samples=2)
    best_of_n.run(config, str(tmp_path / "run"))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    score = summary["curve"][0]["score"]  # three answers, and one prompt to draw
    assert score["n"] == 3 and score["low"] == score["high"] == score["mean"]
    assert "n = 3 prompts" in (tmp_path / "run" / "best_of_n.md").read_text()


def test_a_language_model_does_not_score(model_folders, stage_config, tmp_path):
    policy, other = model_folders
    config = stage_config("best_of_n", policy=policy, reward_model=other)
    with pytest.raises(ValueError, match="is a language model, not a reward model"):
        best_of_n.run(config, str(tmp_path))
    config = stage_config("best_of_n")
    with pytest.raises(ValueError, match=r"Give config\.policy"):
        best_of_n.run(config, str(tmp_path / "other"))
