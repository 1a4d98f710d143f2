"""The end of a stage: its result, and a next command that can be run."""

import shlex

import pytest

from configs import (
    alignbench,
    best_of_n,
    collect,
    compare_baselines,
    dpo,
    evaluate,
    evaluate_reward,
    pairs,
    ppo,
    prepare_comparisons,
    prepare_prompts,
    reward,
    select_prompts,
    sft,
)
from rlhf_jax.launching import closing
from tests.commands import check_flags

CONFIGS = [module.get_config() for module in (
    alignbench, best_of_n, collect, compare_baselines, dpo, evaluate, evaluate_reward,
    pairs, ppo, prepare_comparisons, prepare_prompts, reward, select_prompts, sft,
)]  # fmt: skip
LAST = ("alignbench", "best_of_n", "evaluate_reward")  # nothing follows them


def following(config, preset="tiny", **overrides):
    for key, value in overrides.items():
        config.update_from_flattened_dict({key: value})
    text = closing.next_command(config, "runs/here", preset, overrides)
    assert all(len(line) <= closing.WIDTH for line in text.splitlines())
    return shlex.split(text.replace("\\\n", " "))


@pytest.mark.parametrize("own", [False, True], ids=["testbed", "own data"])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.stage)
def test_what_follows_is_a_command_that_is_understood(config, own):
    config = config.copy_and_resolve_references()
    if "models" in config:
        config.models = "sft=runs/sft,ppo=runs/ppo"
    fields = {"data.path": "my data"} if own and "data" in config else {}
    words = following(config, **fields)
    if config.stage in LAST:
        assert words == []
        return
    assert words[0] == "python"
    check_flags(words[1], words[2:])
    told = any(word.startswith("--config=") for word in words)
    told &= words[1] != "launch/prepare_comparisons.py"  # it has no data folder
    assert ("--config.data.path=my data" in words) == (bool(fields) and told)


def test_each_stage_reads_what_the_one_before_made(tmp_path, monkeypatch):
    c = collect.get_config()
    c.init_from = "runs/sft"
    assert "--config.comparisons=runs/here/comparisons.jsonl" in following(c)
    assert "--config.tokenizer=runs/sft" in following(c)
    p = prepare_comparisons.get_config()
    assert "--config.init_from=SFT_RUN" in following(p)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sft" / "checkpoints").mkdir(parents=True)
    p.tokenizer = "sft"
    words = following(p)
    assert "--config.init_from=sft" in words
    assert "--config.comparisons_test=runs/here/comparisons_test.jsonl" in words
    c.annotator = "people"
    assert following(c)[1:] == ["launch/annotate.py", "--workdir=runs/here"]
    assert "--config.pairs=runs/here/comparisons.jsonl" in following(pairs.get_config())
    words = following(reward.get_config("hh"), "hh", **{"data.path": "F"})
    assert "--config=configs/ppo.py:hh" in words
    assert "--config.reward_model=runs/here" in words
    words = following(reward.get_config(), **{"lora.rank": 8})
    assert "--config.lora.rank=8" in words  # the policy gets adapters too
    words = following(ppo.get_config(), **{"lora.rank": 8})
    assert "--config.lora.rank=8" not in words


@pytest.mark.parametrize("config", [ppo, select_prompts], ids=lambda x: x.__name__)
def test_functions_alone_need_no_reward_model_afterwards(config):
    config, options = config.get_config(), {"reward_options.pattern": "a b"}
    rewards = {"rewards": "regular_expression=1.0", **options}
    words = following(config, **rewards, **{"data.path": "mine"})
    check_flags(words[1], words[2:])
    assert "--config.rewards=regular_expression=1.0" in words
    assert "--config.reward_options.pattern=a b" in words
    assert not any("reward_model" in word for word in words)
    assert ("--config.judge=rewards" in words) == (config.stage == "ppo")
    both = {"rewards": "model=1,regular_expression=1", "reward_model": "runs/reward"}
    words = following(config, **both, **options)
    assert "--config.reward_model=runs/reward" in words
    assert f"--config.rewards={both['rewards']}" in words
    assert "--config.judge=rewards" not in words


def test_a_result_is_told_as_far_as_it_is_known(tmp_path):
    summary = {"eval/scores": 0.6239, "objective/kl": 0.67}
    text = closing.result("ppo", summary, tmp_path)
    assert text.startswith(
        "ppo: score 0.62 on held-out prompts, KL 0.67 nats a response."
    )
    assert text.endswith(f"All numbers: {tmp_path}/summary.json")
    versus = {"against_baseline": {"net": 0.331}}
    text = closing.result("evaluate", {"models": {"sft": {}, "ppo": versus}}, "x")
    assert text.startswith("evaluate: ppo +33.1% net wins.")
    assert closing.result("best_of_n", {}, "x").startswith("best_of_n: done.")


def test_main_numbers_are_of_the_stage():
    assert closing.main_number("sft") == "eval/loss"
    assert closing.main_number("reward") == "eval/accuracy"
    assert closing.main_number("evaluate") == ""
