"""Two processes with a device each make the run of one process with two."""

import json
from pathlib import Path

import jax
import numpy as np

from rlhf_jax.launching.stage import run_stage
from rlhf_jax.training.metrics import MEASURED, read_metrics
from rlhf_jax.training.weights import load_model
from rlhf_jax.training.workdir import is_finished, read_summary
from tests.processes import SMALL, finish, run_two, start, start_two
from tests.run_stages import config_of


def test_an_iteration_of_ppo_in_two_processes_is_that_of_one(
    data_folder, reward_folder, tmp_path
):
    config = SMALL | {"data.path": data_folder, "total_steps": 1}
    config |= {"eval_every": 1, "judge_model": reward_folder}
    outputs = finish(*start_two(config, tmp_path / "two"))
    finish(start(config, tmp_path / "one", 2))

    of_two, of_one = (read_metrics(tmp_path / name) for name in ("two", "one"))
    assert [line["step"] for line in of_one] == [0, 1]
    for two, one in zip(of_two, of_one, strict=True):
        assert two.keys() == one.keys()
        for name, value in one.items():
            if not name.startswith(MEASURED):
                np.testing.assert_allclose(
                    two[name], value, rtol=2e-4, atol=2e-5, err_msg=name
                )
    for item in ("model", "value"):
        models = [load_model(tmp_path / n, item=item) for n in ("two", "one")]
        for x, y in zip(*map(jax.tree.leaves, models), strict=True):
            np.testing.assert_allclose(x, y, atol=1e-4)
    # One process tells of the run.
    assert "short enough" in outputs[0]
    assert "short enough" not in outputs[1]


def every_stage(root: Path) -> list[tuple[str, dict, str]]:
    """All stages, each from what the ones before it left in `root`."""
    data = {"data.path": str(root / "sft" / "data")}
    policy, scorer = str(root / "sft"), str(root / "reward")
    comparisons = str(root / "collect" / "comparisons.jsonl")
    both = data | {"init_from": policy, "reward_model": scorer}
    train = {"comparisons": str(root / "prepare_comparisons" / "comparisons.jsonl")}
    held_out = {
        "comparisons_test": str(root / "prepare_comparisons/comparisons_test.jsonl")
    }
    pairs = {"pairs": str(root / "pairs" / "comparisons.jsonl")}
    judged = {"judge": "reward_model", "reward_model": scorer}
    fields = {
        "sft": {},
        "collect": data | {"init_from": policy},
        "prepare_comparisons": {"comparisons": comparisons, "tokenizer": policy},
        "reward": data | {"init_from": policy} | train | held_out,
        "pairs": both,
        "ppo": both | {"total_steps": 1},
        "dpo": data | {"init_from": policy} | pairs,
        "select_prompts": both | {"epsilon": 0.0, "samples_per_prompt": 4},
        "evaluate": data | judged | {"models": f"sft={policy},dpo={root / 'dpo'}"},
        "evaluate_reward": data | {"reward_model": scorer, "max_response_tokens": 64},
        "best_of_n": data | {"policy": policy, "reward_model": scorer},
        "compare_baselines": data
        | {"policy": policy, "reward_model": scorer, "gradient_directions": 1},
        "prepare_prompts": {
            "prompts": str(root / "sft" / "data" / "prompts.jsonl"),
            "scorer": "none",
        },
    }
    return [(stage, x, str(root / stage)) for stage, x in fields.items()]


def test_every_stage_runs_in_two_processes_and_writes_once(tmp_path):
    root = tmp_path / "two"
    plan = tmp_path / "stages.json"
    plan.write_text(json.dumps(every_stage(root)))
    first, second = finish(*run_two(plan))
    assert "All numbers" in first
    assert "All numbers" not in second
    assert "always longer" not in second  # of a table
    for stage, _, folder in every_stage(root):
        assert is_finished(folder), stage
        assert not list(Path(folder).rglob("*.tmp")), stage

    # The files are those of one process with the same inputs.
    for stage in ("prepare_comparisons", "evaluate_reward", "prepare_prompts"):
        (fields,) = (fields for name, fields, _ in every_stage(root) if name == stage)
        run_stage(config_of(stage, fields), tmp_path / "one" / stage)
        ones, twos = (
            {path.name: path for path in (place / stage).rglob("*") if path.is_file()}
            for place in (tmp_path / "one", root)
        )
        assert ones.keys() == twos.keys()
        for name, path in ones.items():
            if path.suffix == ".jsonl":
                mine, theirs = path.read_text(), twos[name].read_text()
                assert len(mine.splitlines()) == len(theirs.splitlines()), name
                assert mine == theirs or stage == "evaluate_reward", name
    a, b = (
        read_summary(place / "evaluate_reward") for place in (root, tmp_path / "one")
    )
    for name in ("accuracy", "score_std"):
        np.testing.assert_allclose(a[name], b[name], rtol=1e-4)
