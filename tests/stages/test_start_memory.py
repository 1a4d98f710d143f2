"""A run starts in the memory in which it trains: live arrays against the plan."""

import dataclasses
import functools
import importlib
import sys
from pathlib import Path

import jax
import pytest

import rlhf_jax
from rlhf_jax.data.tokenizers.tokenizer import copy_tokenizer
from rlhf_jax.models import huggingface
from rlhf_jax.models.presets import preset
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.planning import programs, start
from rlhf_jax.training import weights
from tests.stages.conftest import save_model
from tests.stages.test_stages import run

PACKAGE = Path(rlhf_jax.__file__).parent
WATCHED = ("training/weights.py", "training/state.py", "parallel/sharding.py")
WATCHED += ("models/quantise.py", "models/huggingface.py")
SMALL = 32 * 1024  # bytes: keys, learning rates and what else no program is given
INT8_BASE = {"lora.rank": 4, "lora.base_dtype": "int8"}
PUBLISHED = {"init_from": "published"}
JUDGED = {"judge_model": "judge"}
OFFLOADED = {"offload_moments": True, "offload_frozen": True}
RUNS = [
    ("sft", {}),
    ("sft", {"scan_layers": True, "param_dtype": "bfloat16"}),
    ("reward", {"scan_layers": True}),
    ("dpo", {"scan_layers": True, "reference": "on_the_fly"}),
    ("ppo", {"scan_layers": True} | JUDGED),
    ("ppo", {"scan_layers": True, "frozen_param_dtype": "int8"} | PUBLISHED),
    ("ppo", {"scan_layers": True, **INT8_BASE} | PUBLISHED),
    ("dpo", {"scan_layers": True, **INT8_BASE, "init_from": "checkpoint"}),
    ("ppo", {"scan_layers": True, **JUDGED} | OFFLOADED),
    ("ppo", {"scan_layers": True, "advantage": "remax", "baseline": "greedy"}),
]


class Stop(Exception):
    pass


def on_the_device() -> int:
    """The bytes of all live arrays in the memory of the device."""
    arrays = jax.live_arrays()
    return sum(x.nbytes for x in arrays if x.sharding.memory_kind == "device")


class Watch:
    """The most bytes alive at any line of a stage and of what loads and makes its
    state."""

    def __init__(self, stage: str):
        files = (f"stages/{stage}.py", *WATCHED)
        self.files = {str(PACKAGE / file) for file in files}
        self.before, self.most = on_the_device(), 0

    def __call__(self, frame, event, _):
        if event == "call":
            return self if frame.f_code.co_filename in self.files else None
        self.most = max(self.most, on_the_device() - self.before)
        return self


@pytest.fixture(scope="module")
def saved(data_folder, tmp_path_factory):
    """`saved("published")`: a folder of a model in Hugging Face's layout;
    `saved("checkpoint")`: of one of ours; `saved("judge")`: of a reward model."""
    how = {"dtype": "float32", "param_dtype": "float32"}
    key = jax.random.key(0)
    model = weights.load_policy("", model="tiny", num_tokens=400, key=key, **how)

    @functools.cache
    def make(kind: str) -> str:
        folder = tmp_path_factory.mktemp(kind) / "model"
        if kind == "published":
            huggingface.save(model, folder)
        else:
            given = model
            if kind == "judge":
                on_top = {"backbone": model, "num_tokens": 400, "key": key}
                given = weights.load_score_model("", **on_top)
            save_model(given, folder, data_folder, stage="sft")
        copy_tokenizer(data_folder / "tokenizer", folder / "tokenizer")
        return str(folder)

    return make


@pytest.mark.parametrize(
    ("stage", "fields"), RUNS, ids=lambda x: x if isinstance(x, str) else "-".join(x)
)
def test_no_more_is_alive_than_the_plan_says(
    stage, fields, stage_config, saved, tmp_path, monkeypatch
):
    """Up to the loop the row "start", and from there to the first update the largest
    of all rows, without their temporaries, but with what a decoding step reads: the
    sampler's model and caches. Most of the plan is really there."""
    config = stage_config(stage, model="tiny")
    config.update_from_flattened_dict(fields)
    for name in ("init_from", "judge_model"):
        if config.get(name):
            config[name] = saved(config[name])
    module = importlib.import_module(f"rlhf_jax.stages.{stage}")
    bar, seen = module.ProgressBar, {}
    watch = Watch(stage)

    def begin(*arguments):
        seen["start"] = watch.most
        return bar(*arguments)

    def stop(*_, **__):
        raise Stop

    monkeypatch.setattr(module, "ProgressBar", begin)
    monkeypatch.setattr(module, "train_step", functools.wraps(module.train_step)(stop))
    with jax.set_mesh(make_mesh((1, 1, 1), jax.devices()[:1])):
        sys.settrace(watch)
        try:
            with pytest.raises(Stop):
                run(config, tmp_path / "run")
        finally:
            sys.settrace(None)
        model = preset("tiny", **weights.computation(config))
        model = dataclasses.replace(model, vocab_size=448)  # of 400 tokens
        rows = {
            program.name: start.size(
                (program.arguments, program.held, program.loop_reads[-1:])
            )
            for program in (start.of(config, model), *programs.of(config, model))
        }
    assert 0.9 * rows["start"] < seen["start"] <= rows["start"] + SMALL
    assert watch.most <= max(rows.values()) + SMALL
