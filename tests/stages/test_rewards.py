"""Stages whose rewards are functions: no reward model is loaded, and a fault loses
nothing."""

import json
import subprocess

import jax
import numpy as np
import pytest

from rlhf_jax.data.records import Prompt, Response, read_records
from rlhf_jax.rewards.prompt_offset import prompt_offset
from rlhf_jax.rewards.rewards import RewardError
from rlhf_jax.stages import best_of_n, evaluate, pairs, ppo, select_prompts
from rlhf_jax.training import weights
from rlhf_jax.training.checkpoints import Checkpoints
from rlhf_jax.training.metrics import MEASURED, read_metrics
from rlhf_jax.training.weights import load_model
from rlhf_jax.training.workdir import is_finished, read_summary
from tests.processes import SMALL, finish, start, start_two

OWN = """
import os, signal
from pathlib import Path

HERE = Path(__file__).parent

def letters(prompts, responses):
    {at_fault}
    return [len(set(response.text)) / 10 for response in responses]
"""
FAULT = "assert not (HERE / 'fault').exists(), 'not yet'"
FIFTH_CALL = """with (HERE / "calls").open("a") as file:
        file.write("x")
    fifth = (HERE / "calls").stat().st_size >= 5
    assert not (HERE / "fault").exists() or not fifth, 'not yet'"""
# The third call of a process kills it, once.
KILL = """with (HERE / f"calls_{os.getpid()}").open("a") as file:
        file.write("x")
    if (HERE / "kill").exists() and os.path.getsize(file.name) == 3:
        (HERE / "kill").unlink()
        os.kill(os.getpid(), signal.SIGKILL)"""


@pytest.fixture
def own(tmp_path):
    def make(at_fault=""):
        path = tmp_path / "own.py"
        path.write_text(OWN.format(at_fault=at_fault))
        return str(path)

    return make


@pytest.fixture
def no_reward_model(monkeypatch):
    def load_score_model(*_, **__):
        raise AssertionError("A reward model was loaded.")

    monkeypatch.setattr(weights, "load_score_model", load_score_model)


def numbers_of(workdir):
    return [
        {k: x for k, x in line.items() if not k.startswith(MEASURED)}
        for line in read_metrics(workdir)
    ]


def same(one, other) -> bool:
    models = map(jax.tree.leaves, map(load_model, (one, other)))
    return all(np.array_equal(x, y) for x, y in zip(*models, strict=True))


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


GRPO = {"advantage": "grpo", "baseline": "none", "samples_per_prompt": 4}


@pytest.mark.parametrize("fields", [GRPO, {"advantage": "remax", "baseline": "greedy"}])
def test_ppo_without_a_reward_model(
    fields, own, no_reward_model, stage_config, tmp_path
):
    spec = f"{own()}:letters=1.0,exact_match=2.0,length_penalty=0.5"
    config = stage_config("ppo", rewards=spec, **fields)
    ppo.run(config, str(tmp_path / "run"))
    for line in numbers_of(tmp_path / "run"):
        total = line["reward/letters"] + 2 * line["reward/exact_match"]
        total += 0.5 * line["reward/length_penalty"]
        assert line["objective/scores"] == pytest.approx(total, abs=1e-5)
        assert line["reward/letters"] > 0
        if fields["baseline"] == "none":
            assert line["objective/baselined_scores"] == line["objective/scores"]
    for sample in lines_of(tmp_path / "run" / "samples.jsonl"):
        rewards = sample["rewards"]
        assert rewards["letters"] == pytest.approx(len(set(sample["response"])) / 10)
        total = rewards["letters"] + 2 * rewards["exact_match"]
        total += 0.5 * rewards["length_penalty"]
        assert sample["reward"] == pytest.approx(total, abs=1e-5)


def test_the_references_answers_have_the_same_rewards(
    own, stage_config, data_folder, tmp_path
):
    """With a critic, which then starts from the policy's backbone. An offset of each
    prompt is in the scores, and the baseline takes it away."""
    spec = f"{own()}:letters=1.0,prompt_offset=3.0"
    config = stage_config("ppo", rewards=spec, eval_every=0)
    ppo.run(config, str(tmp_path / "run"))
    prompts = read_records(data_folder / "prompts.jsonl", Prompt)
    offsets = prompt_offset()(prompts, [Response("", True, [0])] * len(prompts))
    with np.load(tmp_path / "run" / "reference_scores.npz") as file:
        values = file["values"] - 3.0 * np.array(offsets, np.float32)
    known = values[~np.isnan(values)]
    assert known.min() >= 0 and known.std() > 0
    np.testing.assert_allclose(known * 10, np.round(known * 10), atol=1e-4)
    uses = {"iterations": 2 * config.batch_size, "baseline": known.size, "selection": 0}
    assert read_summary(tmp_path / "run")["responses by use"] == uses
    for line in numbers_of(tmp_path / "run"):
        total = line["reward/letters"] + 3 * line["reward/prompt_offset"]
        assert line["objective/scores"] == pytest.approx(total, abs=1e-5)
        # The mean of 8 differences of two numbers of letters, in tenths.
        letters = 80 * line["objective/baselined_scores"]
        assert letters == pytest.approx(round(letters), abs=1e-3)
        assert abs(80 * total - round(80 * total)) > 1e-2


def test_pairs_and_selection_without_a_reward_model(
    own, no_reward_model, stage_config, tmp_path
):
    spec = {"rewards": f"{own()}:letters=1.0", "missing_end_penalty": 0.0}
    pairs.run(stage_config("pairs", **spec, num_responses=3), str(tmp_path / "pairs"))
    made = lines_of(tmp_path / "pairs" / "comparisons.jsonl")
    for pair in made:
        a, b = (len(set(pair[f"response_{x}"])) / 10 for x in "ab")
        assert a > b
        assert pair["annotator"] == "rewards"
        assert pair["info"]["scores"] == pytest.approx([a, b])
        assert pair["info"]["rewards"]["letters"] == pytest.approx([a, b])
    assert made
    select_prompts.run(
        stage_config("select_prompts", **spec, epsilon=1e-4), str(tmp_path / "selected")
    )
    kept = lines_of(tmp_path / "selected" / "prompts.jsonl")
    assert all(prompt["reference"] for prompt in kept)
    for line in lines_of(tmp_path / "selected" / "rollouts.jsonl"):
        expected = [len(set(text)) / 10 for text in line["responses"]]
        assert line["scores"] == pytest.approx(expected)
        assert line["rewards"]["letters"] == pytest.approx(expected)


def test_best_of_n_and_evaluate_without_a_reward_model(
    own, stage_config, model_folders, tmp_path
):
    spec = {"rewards": f"{own()}:letters=1.0", "num_prompts": 8}
    one, two = model_folders
    best_of_n.run(
        stage_config("best_of_n", **spec, policy=one, num_samples=4),
        str(tmp_path / "best"),
    )
    curve = read_summary(tmp_path / "best")["curve"]
    means = [row["score"]["mean"] for row in curve]
    assert means == sorted(means) and means[0] < means[-1]
    evaluate.run(
        stage_config("evaluate", **spec, models=f"a={one},b={two}", judge="rewards"),
        str(tmp_path / "evaluate"),
    )
    rows = read_summary(tmp_path / "evaluate")["models"]
    for name, row in rows.items():
        answers = lines_of(tmp_path / "evaluate" / f"answers_{name}.jsonl")
        by_hand = [len(set(answer["response"])) / 10 for answer in answers]
        written = [answer["reward/letters"] for answer in answers]
        assert written == pytest.approx(by_hand)
        mean = row["rewards"]["letters"]
        assert mean["mean"] == row["quality"]["mean"] == pytest.approx(np.mean(by_hand))
        assert mean["low"] <= mean["mean"] <= mean["high"]
    assert "against_baseline" in rows["b"]


def test_a_function_that_is_mended_goes_on_where_it_failed(own, stage_config, tmp_path):
    """The calls: iterations 1 and 2, an evaluation, iterations 3 and 4."""
    config = stage_config(
        "ppo",
        rewards=f"{own(FIFTH_CALL)}:letters=1.0",
        total_steps=4,
        save_every=2,
        **GRPO,
    )
    run, whole = tmp_path / "run", tmp_path / "whole"
    ppo.run(config, str(whole))
    (tmp_path / "calls").unlink()
    (tmp_path / "fault").touch()
    message = r"own.py:letters on the prompt '.*': raised AssertionError: not yet"
    with pytest.raises(RewardError, match=message):
        ppo.run(config, str(run))
    assert not is_finished(run)
    # Iteration 4 failed, and none before it is lost.
    assert Checkpoints(run, keep=None).latest_step() == 3

    own()  # mended: another file
    ppo.run(config, str(run))
    assert numbers_of(run) == numbers_of(whole)
    assert same(run, whole)

    own(FIFTH_CALL)  # changed without a fault
    (run / "summary.json").unlink()
    with pytest.raises(ValueError, match=r"these have changed since: .*own.py"):
        ppo.run(config, str(run))


def test_a_fault_under_zero_is_counted_in_the_metrics(own, stage_config, tmp_path):
    config = stage_config(
        "ppo",
        rewards=f"{own(FAULT)}:letters=1.0",
        on_reward_error="zero",
        eval_every=0,
        **GRPO,
    )
    (tmp_path / "fault").touch()
    ppo.run(config, str(tmp_path / "run"))
    for line in numbers_of(tmp_path / "run"):
        assert line["reward/letters_faults"] == config.batch_size
        assert line["objective/scores"] == 0.0


COMMAND = SMALL | GRPO | {"batch_size": 8, "total_steps": 3, "save_every": 1}


def test_a_file_of_ones_own_survives_a_kill_bit_for_bit(own, data_folder, tmp_path):
    """From the command line; the function itself kills its process in the third
    iteration."""
    config = COMMAND | {"data.path": data_folder, "mesh": "(1,1,1)", "eval_every": 0}
    config["rewards"] = f"{own(KILL)}:letters=1.0"
    finish(start(config, tmp_path / "whole", 1))
    (tmp_path / "kill").touch()
    killed = start(config, tmp_path / "run", 1)
    killed.communicate(timeout=600)
    assert killed.returncode == -9
    assert not is_finished(tmp_path / "run")
    finish(start(config, tmp_path / "run", 1))
    assert numbers_of(tmp_path / "run") == numbers_of(tmp_path / "whole")
    assert len(numbers_of(tmp_path / "run")) == 3
    assert same(tmp_path / "run", tmp_path / "whole")


def test_two_processes_share_the_functions_out(own, data_folder, tmp_path):
    config = COMMAND | {"data.path": data_folder, "total_steps": 1}
    config["rewards"] = f"{own()}:letters=1.0,exact_match=1.0"
    finish(*start_two(config, tmp_path / "two"))
    finish(start(config, tmp_path / "one", 2))
    (two,), (one,) = read_metrics(tmp_path / "two"), read_metrics(tmp_path / "one")
    for name in ("reward/letters", "reward/exact_match", "objective/scores"):
        assert two[name] == pytest.approx(one[name], rel=1e-6)
    assert two["reward/letters"] > 0


def test_a_fault_ends_both_processes(own, data_folder, tmp_path):
    config = COMMAND | {"data.path": data_folder, "total_steps": 1}
    config["rewards"] = f"{own(FAULT)}:letters=1.0"
    (tmp_path / "fault").touch()
    processes = start_two(config, tmp_path / "two")
    try:
        outputs = [process.communicate(timeout=600)[0] for process in processes]
    except subprocess.TimeoutExpired:
        for process in processes:
            process.kill()
        raise
    assert all(process.returncode not in (0, None) for process in processes)
    assert "own.py:letters on the prompt" in outputs[0]
