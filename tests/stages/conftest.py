"""A testbed of a few prompts, and configs of a few steps: whole stages in seconds."""

import importlib
import json

import jax
import pytest

from configs import common
from rlhf_jax.data import sources
from rlhf_jax.data.tokenizers.tokenizer import copy_tokenizer
from rlhf_jax.training import model_records, weights
from rlhf_jax.training.checkpoints import Checkpoints


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory):
    """A small testbed, laid out once."""
    config = common.data("tiny")
    config.vocab_size = 400
    config.testbed.num_sft = 64
    config.testbed.num_sft_test = 8
    config.testbed.num_comparison_prompts = 48
    config.testbed.num_rl_prompts = 16
    config.testbed.num_eval_prompts = 8
    config.testbed.num_probes = 4
    return sources.open_data(config, tmp_path_factory.mktemp("testbed"))


@pytest.fixture(scope="session")
def model_folders(data_folder, tmp_path_factory):
    """Two random language models as workdirs."""
    folders = []
    for seed in range(2):
        folder = tmp_path_factory.mktemp("model") / str(seed)
        model = weights.load_policy(
            "",
            model="micro",
            num_tokens=400,
            key=jax.random.key(seed),
            dtype="float32",
            param_dtype="float32",
        )
        folders.append(save_model(model, folder, data_folder, stage="sft"))
    return folders


def save_model(model, folder, data_folder, *, stage: str) -> str:
    """Write a model as the workdir of a stage; return the folder."""
    checkpoints = Checkpoints(folder, keep=1)
    meta = {"models": {"model": model_records.describe(model)}}
    checkpoints.save(0, {"model": model}, meta)
    checkpoints.close()
    record = {"config": {"stage": stage, "seed": 0}, "versions": {}, "seed": 0}
    (folder / "config.json").write_text(json.dumps(record))
    copy_tokenizer(data_folder / "tokenizer", folder / "tokenizer")
    return str(folder)


@pytest.fixture(scope="session")
def reward_folder(model_folders, data_folder, tmp_path_factory):
    """A random reward model as a workdir."""
    folder = tmp_path_factory.mktemp("reward") / "0"
    model = weights.load_score_model(
        "",
        backbone=weights.load_model(model_folders[0]),
        num_tokens=400,
        key=jax.random.key(2),
    )
    return save_model(model, folder, data_folder, stage="reward")


@pytest.fixture(scope="session")
def stage_config(data_folder):
    """`stage_config("ppo", lam=1.0)`: that stage's tiny config, cut down."""

    def make(stage: str, **fields):
        config = importlib.import_module(f"configs.{stage}").get_config("tiny")
        reads_pairs = bool({"comparisons", "pairs"} & set(config))
        config.model = "micro"
        config.data.path = str(data_folder)
        small = {
            "batch_size": 8,
            "epochs": 1,
            "total_steps": 2,
            "max_tokens": 256,
            "max_sft_tokens": 256,
            "sft_batch_size": 4,
            "max_prompt_tokens": 128,
            "max_response_tokens": 128 if reads_pairs else 12,
            "pad_to_multiple": 128,
            "eval_every": 2,
            "save_every": 2,
        }
        config.update({k: v for k, v in small.items() if k in config})
        config.update(fields)
        return config

    return make
