"""The README's second path in small: a GGUF file, people's comparisons, an aligned
model, judged by a reward model that nothing was trained against."""

import json
import random

import jax
import numpy as np
import pytest

from configs import pipeline as config_file
from rlhf_jax.data.records import Comparison, read_records
from rlhf_jax.launching import pipeline
from rlhf_jax.launching.convert import convert
from rlhf_jax.training import weights
from rlhf_jax.training.metrics import read_metrics
from rlhf_jax.training.workdir import is_finished, read_summary
from tests.launching import gguf_files as files

WORDS = ["hello", "red", "blue", "green", "tea", "milk", "rain", "sun", "two", "three"]


def write_comparisons(folder, seed=0):
    """Write conversations in the layout of hh-rlhf."""
    rng = random.Random(seed)
    folder.mkdir()
    for split, count in (("train", 64), ("test", 16)):
        lines = []
        for i in range(count):
            talk = f"\n\nHuman: {' '.join(rng.choices(WORDS, k=5))} {split} {i}"
            answers = (" ".join(rng.choices(WORDS, k=6)) for _ in range(2))
            both = [f"{talk}\n\nAssistant: {answer}" for answer in answers]
            lines.append(
                json.dumps(dict(zip(("chosen", "rejected"), both, strict=True)))
            )
        (folder / f"{split}.jsonl").write_text("\n".join(lines))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a finished run of the preset, in its smallest size."""
    folder = tmp_path_factory.mktemp("path")
    file = folder / "model.gguf"
    tensors = files.in_gguf("llama", files.tensors_of("llama"))
    files.write(file, "llama", tensors, kind="Q4_1")
    convert(file, folder / "model")
    write_comparisons(folder / "hh")
    c = config_file.get_config("smollm2")
    c.init_from, c.data.path = str(folder / "model"), str(folder / "hh")
    c.evaluate.data.testbed.num_probes = 2
    for stage in (c.reward, c.ppo, c.pairs, c.dpo, c.evaluate):
        for key, x in {
            "batch_size": 8,
            "max_response_tokens": 12,
            "max_prompt_tokens": 256,
            "num_prompts": 8,
            "max_prompts": 8,
            "num_eval_prompts": 8,
            "total_steps": 1,
            "epochs": 1,
            "minibatches": 1,
            "microbatches": 1,
            "eval_every": 0,
            "pad_to_multiple": 64,
            "num_samples": 0,
        }.items():
            if key in stage:
                stage[key] = x
        if "optimizer" in stage:
            stage.optimizer.trainable = r"blocks\.1\.|final_norm|head"
            stage.optimizer.learning_rate = 1e-2
    c.reward.max_response_tokens, c.reward.validation_share = 64, 0.2
    c.ppo.eval_every = 1
    pipeline.run(c, str(folder / "run"))
    return folder / "run"


def test_the_run_is_whole(run):
    assert is_finished(run) and (run / "report.html").is_file()
    assert not (run / "sft").exists()
    summary = read_summary(run)
    assert list(summary["models"]) == ["start", "ppo", "dpo"]
    for row in summary["models"].values():
        assert {"quality", "score", "skills_right", "skills_logprob"} <= row.keys()
    assert summary["judge"] == "judge_model"
    for name in ("reward", "held_out_judge"):
        assert 0 <= summary[name]["eval/accuracy"] <= 1


def test_the_judge_learned_from_other_conversations(run):
    """Half of them; the reward model's are balanced by length besides."""
    prepared = run / "prepare_comparisons"
    ours, judges = (
        {
            record.prompt.messages[0]["content"]
            for record in read_records(path, Comparison)
        }
        for path in (
            prepared / "comparisons.jsonl",
            prepared / "comparisons_test.jsonl",
        )
    )
    assert len(ours) > 8 and len(judges) > 16 and not ours & judges
    read = {}
    for name in ("reward", "judge"):
        record = json.loads((run / name / "config.json").read_text())["config"]
        read[name] = record["comparisons"]
        assert record["comparisons_test"] == str(run / "data/comparisons_test.jsonl")
    assert read["reward"] == str(prepared / "comparisons.jsonl")
    assert read["judge"] == str(prepared / "comparisons_test.jsonl")
    record = json.loads((run / "evaluate" / "config.json").read_text())["config"]
    assert record["judge_model"] == str(run / "judge")
    assert record["reward_model"] == str(run / "reward")
    record = json.loads((run / "ppo" / "config.json").read_text())["config"]
    assert record["judge_model"] == str(run / "judge")
    assert read_metrics(run / "ppo")[0]["watch/judge_scores"] == pytest.approx(
        0, abs=1e-6
    )
    assert ">Over-optimisation, held-out prompts</text>" in (
        run / "report.html"
    ).read_text("utf-8")


def test_the_frozen_layers_are_those_of_the_file(run):
    start = jax.tree.leaves_with_path(weights.load_model(run.parent / "model"))
    for stage in ("reward", "judge", "ppo", "dpo"):
        model = weights.load_model(run / stage)
        trained = dict(jax.tree.leaves_with_path(getattr(model, "backbone", model)))
        changed = 0
        for path, x in start:
            name = jax.tree_util.keystr(path)
            if "blocks" in name:
                np.testing.assert_array_equal(x[0], trained[path][0], err_msg=name)
                changed += not np.array_equal(x[1], trained[path][1])
            elif "embedding" in name:
                np.testing.assert_array_equal(x, trained[path], err_msg=name)
        assert changed > 4, stage


def test_a_judge_needs_peoples_comparisons(tmp_path):
    config = config_file.get_config("smollm2")
    config.human_comparisons = False
    with pytest.raises(ValueError, match="held_out_judge=True needs comparisons of"):
        pipeline.run(config, str(tmp_path))


def test_a_model_that_is_not_there_is_told_before_the_first_stage(tmp_path):
    write_comparisons(tmp_path / "hh")
    config = config_file.get_config("smollm2")
    config.init_from, config.data.path = "nowhere", str(tmp_path / "hh")
    for stage in (config.reward, config.ppo, config.dpo):
        stage.microbatches = 1  # the tests' eight devices share a batch
    with pytest.raises(ValueError, match=r"reward: nowhere holds no model"):
        pipeline.run(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
