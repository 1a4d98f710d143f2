"""Configs and flags that cannot work, and the message that each gives: what, where,
what to do. One table a kind; every row is a test, see also test_bad_inputs.py.
"""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from rlhf_jax.data.tokenizers.tokenizer import train_tokenizer
from rlhf_jax.launching import cli
from rlhf_jax.training import config_comments, options

ROOT = Path(__file__).parents[2]
NAN, INF = float("nan"), float("inf")

# --- Config values: stage, key, value, message ---

CONFIGS = [
    ("sft", "batch_size", 0, r"batch_size=0 in 1 parts: both must be at least 1"),
    ("sft", "batch_size", -8, r"batch_size=-8 in 1 parts: both must be at least 1"),
    ("sft", "microbatches", 0, r"batch_size=16 in 0 parts: both must be at least 1"),
    ("sft", "microbatches", 5, r"batch_size=16 does not divide .*Nearest.*15 or 20"),
    ("sft", "epochs", 0, r"config.epochs=0 must be at least 1\."),
    ("sft", "epochs", -1, r"config.epochs=-1 must be at least 1"),
    ("sft", "max_tokens", 0, r"config.max_tokens=0 must be at least 1"),
    ("sft", "pad_to_multiple", 0, r"config.pad_to_multiple=0 must be at least 1"),
    ("sft", "eval_every", -1, r"config.eval_every=-1 must be at least 0"),
    ("sft", "save_every", -5, r"config.save_every=-5 must be at least 0"),
    (
        "sft",
        "seed",
        1 << 64,
        r"seed=18446744073709551616 must be at most 2,147,483,647",
    ),
    ("sft", "epochs", 10**21, r"epochs=1000000000000000000000 must be at most 1,048"),
    ("sft", "pad_to_multiple", 10**9, r"pad_to_multiple=1000000000 must be at most 65"),
    ("sft", "optimizer.b2", 1 - 1e-12, r"b2=0.999999999999 must be from 0 to below 1"),
    ("sft", "optimizer.eps", 1e-50, r"optimizer.eps=1e-50 must be above 0"),
    ("sft", "optimizer.name", "adam", r"optimizer.name='adam' must be one of adamw"),
    ("sft", "attention", "flash", r"attention='flash' must be one of auto, xla"),
    ("sft", "remat", "yes", r"config.remat='yes' must be one of none, dots, full"),
    ("sft", "seed", -1, r"config.seed=-1 must be at least 0"),
    ("sft", "mesh", ("1", 1, 1), r"config.mesh=\('1', 1, 1\) must be whole numbers"),
    ("sft", "num_samples", -1, r"config.num_samples=-1 must be at least 0"),
    ("sft", "keep_checkpoints", 0, r"config.keep_checkpoints=0 must be at least 1"),
    ("sft", "max_skipped_updates", 0, r"max_skipped_updates=0 must be at least 1"),
    ("sft", "spike_zscore", -1.0, r"config.spike_zscore=-1.0 must be at least 0"),
    ("sft", "spike_zscore", NAN, r"config.spike_zscore=nan must be at least 0"),
    ("sft", "chunk_size", -1, r"config.chunk_size=-1 must be at least 0"),
    ("sft", "max_prompt_tokens", 0, r"max_prompt_tokens=0 must be at least 1"),
    ("sft", "max_response_tokens", -3, r"max_response_tokens=-3 must be at least 1"),
    ("sft", "dtype", "float64", r"dtype='float64' must be one of float32, bfloat16"),
    ("sft", "dtype", "fp16", r"config.dtype='fp16' must be one of"),
    ("sft", "param_dtype", "int8", r"param_dtype='int8' must be one of float32"),
    (
        "sft",
        "optimizer.learning_rate",
        -1e-3,
        r"learning_rate=-0.001 must be at least 0",
    ),
    ("sft", "optimizer.learning_rate", NAN, r"learning_rate=nan must be at least 0"),
    ("sft", "optimizer.learning_rate", INF, r"learning_rate=inf must be at least 0"),
    ("sft", "optimizer.b1", 1.0, r"optimizer.b1=1.0 must be from 0 to below 1"),
    ("sft", "optimizer.b2", -0.1, r"optimizer.b2=-0.1 must be from 0 to below 1"),
    ("sft", "optimizer.eps", 0.0, r"config.optimizer.eps=0.0 must be above 0"),
    ("sft", "optimizer.final", 1.5, r"config.optimizer.final=1.5 must be from 0 to 1"),
    ("sft", "optimizer.clip_norm", -1.0, r"optimizer.clip_norm=-1.0 must be at least"),
    ("sft", "optimizer.weight_decay", -0.1, r"weight_decay=-0.1 must be at least 0"),
    ("sft", "optimizer.warmup_steps", -1, r"warmup_steps=-1 must be at least 0"),
    ("sft", "optimizer.decay", "cos", r"decay='cos' must be one of constant, linear"),
    ("sft", "optimizer.clip", "layer", r"optimizer.clip='layer' must be one of global"),
    ("sft", "optimizer.moment_dtype", "half", r"moment_dtype='half' must be one of"),
    ("sft", "data.vocab_size", 0, r"config.data.vocab_size=0 must be at least 1"),
    ("sft", "data.test_share", 1.0, r"data.test_share=1.0 must be from 0 to below 1"),
    ("sft", "data.on_bad_record", "drop", r"data.on_bad_record='drop' must be one of"),
    ("sft", "data.testbed.num_sft", 0, r"data.testbed.num_sft=0 must be at least 1"),
    ("sft", "data.testbed.right_share", 1.2, r"right_share=1.2 must be from 0 to 1"),
    ("sft", "data.annotators.noise", -1.0, r"annotators.noise=-1.0 must be at least 0"),
    ("sft", "data.annotators.sharpness", 0.0, r"sharpness=0.0 must be above 0"),
    (
        "sft",
        "data.annotators.num_annotators",
        0,
        r"num_annotators=0 must be at least 1",
    ),
    ("sft", "data.path", "nowhere", r"There is no file or folder nowhere"),
    ("sft", "data.path", "", r"data.path is empty: name a file"),
    ("sft", "data.tokenizer", "nowhere", r"No tokenizer in any|no tokenizer"),
    ("sft", "model", "gpt2", r"No preset 'gpt2'\. Known: benchmark, chatglm"),
    ("sft", "init_from", "nowhere", r"nowhere holds no model"),
    (
        "reward",
        "validation_share",
        1.0,
        r"validation_share=1.0 must be from 0",
    ),
    ("reward", "validation_share", -0.1, r"validation_share=-0.1 must be from 0"),
    (
        "reward",
        "label_smoothing",
        0.5,
        r"=0.5 must be from 0 to below 0.5",
    ),
    ("reward", "margin", -1.0, r"config.margin=-1.0 must be at least 0"),
    ("reward", "score_regularisation", -1.0, r"score_regularisation=-1.0 must be at"),
    ("reward", "patience", -1, r"config.patience=-1 must be at least 0"),
    (
        "reward",
        "too_long",
        "cut",
        r"too_long='cut' must be one of \('drop'",
    ),
    ("sft", "too_long", "cut", r"too_long='cut' must be one of drop"),
    ("reward", "too_long", "truncate_end", r"'truncate_end' must be one of \('drop'"),
    (
        "evaluate_reward",
        "too_long",
        "truncate_end",
        r"'truncate_end' must be one of \('drop'",
    ),
    ("reward", "num_centring_pairs", 0, r"num_centring_pairs=0 must be at least 1"),
    ("reward", "comparisons", "nowhere.jsonl", r"There is no file nowhere.jsonl"),
    ("ppo", "advantage", "a2c", r"advantage='a2c' must be one of \('gae'"),
    ("ppo", "baseline", "mean", r"baseline='mean' must be one of \('reference'"),
    ("ppo", "samples_per_prompt", 0, r"batch_size=128 must be a multiple of .*=0"),
    ("ppo", "samples_per_prompt", 3, r"must be a multiple of samples_per_prompt=3"),
    ("ppo", "minibatches", 0, r"batch_size=128 in 0 parts: both must be at least 1"),
    ("ppo", "minibatches", 3, r"batch_size=128 does not divide .*Nearest.*126 or 129"),
    ("ppo", "sft_batch_size", 0, r"sft_batch_size=0 in 1 parts"),
    ("ppo", "total_steps", 0, r"config.total_steps=0 must be at least 1"),
    ("ppo", "ppo_epochs", 0, r"config.ppo_epochs=0 must be at least 1"),
    ("ppo", "temperature", -1.0, r"config.temperature=-1.0 must be at least 0"),
    ("ppo", "kl_coef", -0.1, r"config.kl_coef=-0.1 must be at least 0"),
    ("ppo", "kl_coef", NAN, r"config.kl_coef=nan must be at least 0"),
    ("ppo", "kl_target", -1.0, r"config.kl_target=-1.0 must be at least 0"),
    ("ppo", "kl_horizon", 0.0, r"config.kl_horizon=0.0 must be above 0"),
    ("ppo", "lam", 1.5, r"config.lam=1.5 must be from 0 to 1"),
    ("ppo", "clip_range", 0.0, r"config.clip_range=0.0 must be above 0"),
    ("ppo", "clip_range", -0.2, r"config.clip_range=-0.2 must be above 0"),
    ("ppo", "value_clip_range", 0.0, r"value_clip_range=0.0 must be above 0"),
    ("ppo", "dual_clip", 0.5, r"config.dual_clip=0.5 must be above 1, or 0 for none"),
    ("ppo", "score_clip", 0.0, r"config.score_clip=0.0 must be above 0"),
    ("ppo", "beta_sft", -1.0, r"config.beta_sft=-1.0 must be at least 0"),
    ("ppo", "group_epsilon", -1.0, r"config.group_epsilon=-1.0 must be at least 0"),
    ("ppo", "loss_aggregation", "mean", r"'mean' must be one of token, response"),
    ("ppo", "objective", "trpo", r"objective='trpo' must be one of ppo, gspo, cispo"),
    ("ppo", "clip_range_high", -0.1, r"clip_range_high=-0.1 must be at least 0"),
    ("ppo", "entropy_coef", -0.1, r"entropy_coef=-0.1 must be at least 0"),
    ("ppo", "rollout_correction", "batch", r"'batch' must be one of auto, none"),
    ("ppo", "rollout_weight_cap", 0.5, r"rollout_weight_cap=0.5 must be at least 1"),
    ("ppo", "rollout_error_limit", 0.0, r"error_limit=0.0 must be above 0"),
    ("ppo", "missing_end_penalty", -1.0, r"missing_end_penalty=-1.0 must be at least"),
    ("ppo", "frozen_param_dtype", "int4", r"frozen_param_dtype='int4' must be one of"),
    ("ppo", "rollout_param_dtype", "int4", r"'int4' must be one of same, merged, int8"),
    ("ppo", "whiten_rewards", "rloo", r"whiten_rewards|advantage"),
    ("dpo", "loss", "ppo", r"loss='ppo' must be one of dpo, robust, ipo"),
    ("dpo", "beta", 0.0, r"config.beta=0.0 must be above 0"),
    ("dpo", "beta", INF, r"config.beta=inf must be above 0"),
    ("dpo", "label_smoothing", -0.1, r"label_smoothing=-0.1 must be from 0 to below"),
    ("dpo", "gamma", 1.0, r"gamma=1.0 needs loss='simpo'"),
    ("dpo", "alpha", 0.1, r"alpha=0.1 needs loss='length_regularised'"),
    ("dpo", "reference", "none", r"must be 'cached' or 'on_the_fly'"),
    ("dpo", "pairs", "nowhere.jsonl", r"There is no file nowhere.jsonl"),
    ("dpo", "num_eval_prompts", 0, r"num_eval_prompts=0 must be at least 1"),
    ("pairs", "reward_model", "", r"reward_model is empty: name one, or rewards"),
    ("pairs", "rewards", "right_number=1.0", r"'somewhere' is not among"),
    ("ppo", "rewards", "right_numbr=1.0", r"no reward 'right_numbr'. There are: model"),
    ("ppo", "rewards", "nowhere.py:f=1.0", r"there is no file nowhere.py"),
    ("ppo", "rewards", "right_number=1.0", r"'p' has no reference, which right_number"),
    ("ppo", "on_reward_error", "skip", r"on_reward_error='skip' must be one of stop"),
    ("ppo", "reward_timeout", 0.0, r"reward_timeout=0.0 must be above 0"),
    ("evaluate", "rewards", "model=1.0,valid_json=1.0", r"reward_model is empty"),
    ("best_of_n", "rewards", "", r"config.rewards is empty"),
    ("select_prompts", "rewards", "model=one", r"must be a number, not 'one'"),
    ("pairs", "num_responses", 1, r"num_responses=1 must be at least 2"),
    ("pairs", "rule", "best", r"rule='best' must be one of ranks, random, every"),
    ("pairs", "min_margin", -1.0, r"config.min_margin=-1.0 must be at least 0"),
    ("pairs", "chosen_rank", 9, r"both be ranks of 4 responses"),
    ("pairs", "top_p", 0.0, r"config.top_p=0.0 must be above 0 and at most 1"),
    ("pairs", "top_k", -1, r"config.top_k=-1 must be at least 0"),
    (
        "collect",
        "annotator",
        "crowd",
        r"'crowd' must be 'testbed' or",
    ),
    ("collect", "known_share", 1.5, r"known_share=1.5 must be from 0 to 1"),
    ("collect", "repeat_share", 0.9, r"repeat_share=0.9 must be from 0 to 0.5"),
    ("collect", "top_p", 1.1, r"config.top_p=1.1 must be above 0 and at most 1"),
    ("collect", "num_responses", 0, r"config.num_responses=0 must be at least 1"),
    ("evaluate", "models", "", r"config.models is empty: give name=folder"),
    ("evaluate", "models", "runs/sft", r"'runs/sft' is not of the form name=folder"),
    ("evaluate", "judge", "me", r"judge='me' must be one of"),
    ("evaluate", "num_prompts", 0, r"config.num_prompts=0 must be at least 1"),
    ("evaluate", "tie_margin", -0.1, r"config.tie_margin=-0.1 must be at least 0"),
    ("evaluate", "service.timeout", 0.0, r"service.timeout=0.0 must be above 0"),
    ("evaluate", "service.workers", 0, r"config.service.workers=0 must be at least 1"),
    ("best_of_n", "num_samples", -1, r"num_samples=-1 must be at least"),
    ("compare_baselines", "policy", "", r"Give config.policy"),
    ("compare_baselines", "samples_per_prompt", 1, r"=1 must be 2 or more"),
    ("compare_baselines", "samples_per_prompt", 4, r"=4 must be at least 5 for"),
    ("compare_baselines", "gradient_samples", 9, r"prompt=8 must be at least 9 for"),
    ("compare_baselines", "gradient_prompts", 2, r"=2 and .* must be 3 or more"),
    ("compare_baselines", "gradient_ratios", (0.0, 1.0), r"numbers above 0 that rise"),
    ("compare_baselines", "gradient_ratios", (2.0, 1.0), r"numbers above 0 that rise"),
    ("compare_baselines", "gradient_ratios", (1.0,), r"must be 2 or more numbers"),
    ("compare_baselines", "gradient_ratios", (1.0, INF), r"numbers above 0 that rise"),
    ("compare_baselines", "gradient_ratios", ("x", 2), r"must be 2 or more numbers"),
    ("compare_baselines", "temperature", 0.0, r"temperature=0.0 has no gradient"),
    ("select_prompts", "epsilon", -0.1, r"config.epsilon=-0.1 must be at least 0"),
    ("prepare_comparisons", "comparisons", "", r"Set config.comparisons"),
    ("prepare_comparisons", "test_share", 1.0, r"test_share=1.0 must be from 0"),
    (
        "prepare_comparisons",
        "length_bucket",
        -1,
        r"length_bucket=-1 must be at",
    ),
    ("prepare_comparisons", "tokenizer", "nowhere", r"No tokenizer in any of"),
    ("prepare_prompts", "prompts", "", r"(?i)prompts"),
    ("prepare_prompts", "max_similarity", 2.0, r"max_similarity=2.0 must be"),
]
ABOUT = {  # what a stage needs before it reads the value
    "pairs": {"reward_model": "somewhere"},
    "evaluate": {"models": "a=somewhere"},
    "best_of_n": {"policy": "somewhere", "reward_model": "somewhere"},
    "compare_baselines": {"policy": "somewhere", "reward_model": "somewhere"},
    "select_prompts": {"reward_model": "somewhere"},
    "prepare_comparisons": {"comparisons": "nowhere.jsonl"},
    "prepare_prompts": {"prompts": "nowhere.jsonl"},
}


@pytest.fixture(scope="module")
def small_data(tmp_path_factory):
    """A data folder of the smallest testbed."""
    folder = tmp_path_factory.mktemp("data")
    prompt = {"id": "p", "messages": [{"role": "user", "content": "2 + 2?"}]}
    answer = {"role": "assistant", "content": "4"}
    dialogue = {"messages": [*prompt["messages"], answer]}
    pair = {"prompt": prompt, "response_a": "4", "response_b": "5", "preference": "a"}
    lines = {
        "sft": dialogue,
        "sft_test": dialogue,
        "prompts": prompt,
        "eval_prompts": prompt,
        "comparison_prompts": prompt,
        "comparisons": pair,
        "comparisons_test": pair,
    }
    for name, record in lines.items():
        (folder / f"{name}.jsonl").write_text(json.dumps(record) + "\n")
    train_tokenizer(["2 + 2? 4 5"] * 9, 300, folder / "tokenizer")
    return folder


@pytest.mark.parametrize(("stage", "key", "value", "message"), CONFIGS)
def test_a_config_value(stage, key, value, message, small_data, tmp_path):
    config = importlib.import_module(f"configs.{stage}").get_config()
    if "data" in config and stage not in ("prepare_comparisons", "prepare_prompts"):
        config.data.path = str(small_data)
    config.update(ABOUT.get(stage, {}))
    if value == "rloo":  # an option that contradicts another
        config.advantage, config.baseline, config.samples_per_prompt = "rloo", "none", 2
        value = True
    *path, name = key.split(".")
    node = config
    for part in path:
        node = node[part]
    node[name] = value
    run = importlib.import_module(f"rlhf_jax.stages.{stage}").run
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(config, str(tmp_path / "run"))


def numbers() -> list[tuple[str, str, float]]:
    """(stage, key, value) of every number in every config; once where stages share."""
    found = {}
    for path in sorted((ROOT / "configs").glob("*.py")):
        if path.stem == "common":
            continue
        config = importlib.import_module(f"configs.{path.stem}").get_config()
        for key, value in options.leaves(config, "config"):
            if isinstance(value, int | float) and not isinstance(value, bool):
                found.setdefault(key, (path.stem, key, value))
    return list(found.values())


ABSURD = {  # whole numbers and others, and which keys may have them
    int: [1 << 31, 1 << 32, 1 << 64, 10**21],
    float: [1e39, 1e300, -1e39],
}
ANY = {  # keys whose float may be as large as it likes
    key
    for key, interval in config_comments.intervals().items()
    if np.isinf(interval.low) or (np.isinf(interval.high) and interval.has_high)
}


@pytest.mark.parametrize(("stage", "key", "value"), numbers())
def test_an_absurd_number_is_refused_by_name(stage, key, value):
    config = importlib.import_module(f"configs.{stage}").get_config()
    *path, name = key.split(".")[1:]
    node = config
    for part in path:
        node = node[part]
    for absurd in ABSURD[type(value)]:
        if isinstance(absurd, float) and name in ANY:
            continue
        node[name] = absurd
        with pytest.raises(ValueError, match=rf"{key}=.* must be ") as error:
            options.check(config)
        assert "\n" not in str(error.value)
    node[name] = value
    options.check(config)


def test_every_number_of_every_config_has_a_bound():
    found = set()
    for path in (ROOT / "configs").glob("*.py"):
        if path.stem == "common":
            continue
        config = importlib.import_module(f"configs.{path.stem}").get_config()
        options.check(config)
        for key, value in options.leaves(config, path.stem):
            if isinstance(value, int | float) and not isinstance(value, bool):
                found.add(key.rpartition(".")[2])
    assert found <= set(config_comments.intervals())


def test_a_key_has_the_same_bounds_wherever_it_stands():
    found = {}
    for path in sorted((ROOT / "configs").glob("*.py")):
        for key, comment in config_comments.comments(path).items():
            interval = config_comments.split(comment)[1]
            name = key.rpartition(".")[2]
            if interval is not None:
                assert found.setdefault(name, interval) == interval, f"{path}: {key}"
    assert len(found) > 80


@pytest.mark.parametrize(
    ("comment", "words", "inside", "outside"),
    [
        ("Of it. [0, 1]", "from 0 to 1", [0, 1], [-0.1, 1.1, NAN]),
        ("[0, 1)", "from 0 to below 1", [0, 0.5], [1, NAN]),
        ("(0, 1]", "above 0 and at most 1", [1], [0, 2]),
        ("x [1, inf)", "at least 1", [1, 5], [0, INF]),
        ("(0, inf]", "above 0, perhaps inf", [1, INF], [0, NAN]),
        ("[1, 2**20]", "from 1 to 1,048,576", [1, 1 << 20], [0, (1 << 20) + 1]),
        ("(-inf, inf]", "a number", [-1, INF], [NAN]),
    ],
)
def test_bounds_are_read_from_the_end_of_a_comment(comment, words, inside, outside):
    rest, interval = config_comments.split(comment)
    assert rest in ("", "Of it.", "x")
    assert interval.words == words
    assert all(x in interval for x in inside)
    assert not any(x in interval for x in outside)
    assert config_comments.split("no bounds (see below)")[1] is None


# --- The command line: arguments, message ---

FLAGS = [
    (["--config=configs/nope.py"], r"--config: there is no file configs/nope.py\. In"),
    (["--config=configs/sft.py:huge"], r"has no preset 'huge'; it has: tiny, hh"),
    (["--config=configs/sft.py", "--config.epoch=1"], r"no key 'epoch'.*mean 'epochs'"),
    (["--config=configs/sft.py", "--config.optimizer.lr=1"], r"has no key 'lr'"),
    (["--config=configs/sft.py", "--config.optimizers.b1=1"], r"mean 'optimizer'"),
    (["--config=configs/sft.py", "--config.epochs.x=1"], r"has no key 'x'"),
    (["--config", "configs/sft.py", "--config.epoch=1"], r"mean 'epochs'"),
    (["--config=configs/sft.py", "--noconfig.scan_layer"], r"mean 'scan_layers'"),
    (
        ["--config=configs/sft.py", "--config.data={}"],
        r"it holds other keys, set these",
    ),
    (["--config="], r"--config: there is no file"),
    (["--config=README.md"], r"--config: README.md is not Python: "),
    (["--config=configs/common.py"], r"configs/common.py has no function get_config"),
]


@pytest.mark.parametrize(("arguments", "message"), FLAGS)
def test_a_flag(arguments, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        cli.check_config_flags(["train.py", *arguments])
