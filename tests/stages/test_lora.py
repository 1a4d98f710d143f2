"""Stages that train adapters: four roles on one base, and what their checkpoints are
good for."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models.adapters import own_part
from rlhf_jax.training import weights
from rlhf_jax.training.checkpoints import Checkpoints, flatten
from rlhf_jax.training.metrics import read_metrics
from rlhf_jax.training.state import compiled
from tests.stages.test_stages import numbers, run


@pytest.fixture(scope="module")
def lora_config(stage_config, model_folders):
    """`lora_config("ppo", lam=1.0)`: a stage that trains adapters on the first of the
    random models."""

    def make(stage: str, **fields):
        config = stage_config(stage, init_from=model_folders[0], **fields)
        config.lora.rank = 4
        return config

    return make


@pytest.fixture(scope="module")
def runs(lora_config, tmp_path_factory):
    """`runs("sft")`: the workdir of a run on adapters, made once."""

    @functools.cache
    def make(stage: str):
        fields = {"save_every": 1, "eval_every": 1, "keep_checkpoints": 9}
        if stage == "ppo":
            fields["reward_model"] = str(make("reward"))
        config = lora_config(stage, **fields)
        return run(config, tmp_path_factory.mktemp("lora") / stage)

    return make


@pytest.mark.parametrize(
    ("stage", "item"),
    [("sft", "model"), ("reward", "model"), ("ppo", "model"), ("ppo", "value")],
)
def test_checkpoints_hold_adapters_and_heads(stage, item, runs, model_folders):
    workdir = runs(stage)
    checkpoints = Checkpoints(workdir, keep=None)
    meta = checkpoints.meta(checkpoints.latest_step())
    names = [*meta["shapes"][item], *meta["shapes"][f"{item}_optimizer"]]
    assert not [name for name in names if "kernel" in name and "head" not in name]
    assert not [name for name in names if "embedding" in name or "norm" in name]
    assert meta["models"][item]["base"]["folder"].startswith(model_folders[0])
    model = weights.load_model(workdir, item=item)
    base = flatten(weights.load_model(model_folders[0]))
    flat = {k.removeprefix("backbone."): x for k, x in flatten(model).items()}
    name = "blocks.mlp.up.kernel"
    np.testing.assert_array_equal(flat[name], base[name])
    assert np.abs(flat["blocks.mlp.up.lora_b"]).max() > 0  # it has learnt


def test_four_roles_share_one_base(lora_config, runs, tmp_path, monkeypatch):
    """All arrays that are alive at an update: less than 1.35 times the base in
    bfloat16, and adapters, heads and moments."""
    config = lora_config(
        "ppo",
        reward_model=str(runs("reward")),
        total_steps=1,
        eval_every=0,
        save_every=0,
        dtype="bfloat16",
        rollout_param_dtype="merged",
    )
    config.lora.base_dtype = "bfloat16"
    seen = {}

    def weighed(step, state, *arguments, **named):
        seen["live"] = sum(x.nbytes for x in jax.live_arrays()) - before
        states = (state.policy, state.value)
        own = [(own_part(x.model), x.opt_state) for x in states]
        # Policy, value and reward model have adapters.
        seen["own"] = sum(x.nbytes for x in jax.tree.leaves(own))
        seen["own"] += sum(x.nbytes for x in jax.tree.leaves(own[1][0]))
        policy, value = (flatten(x.model) for x in states)
        seen["shared"] = {
            k for k in policy if policy[k] is value.get(f"backbone.{k}", None)
        }
        seen["base"] = sum(
            x.nbytes for k, x in policy.items() if not k.endswith(("lora_a", "lora_b"))
        )
        return step(state, *arguments, **named)

    before = sum(x.nbytes for x in jax.live_arrays())
    monkeypatch.setattr(
        "rlhf_jax.stages.ppo.compiled",
        lambda step: functools.partial(weighed, compiled(step)),
    )
    run(config, tmp_path)
    assert {"embedding", "blocks.mlp.up.kernel"} < seen["shared"]
    assert seen["live"] < 1.35 * seen["base"] + seen["own"] + 16 * 1024
    # The sampler's copy, whose adapters are merged, rounds otherwise.
    line = read_metrics(tmp_path)[-1]
    assert 0 < line["rollout/logprob_gap_mean"] < 0.1
    assert 0 < line["rollout/weight_min"] <= line["rollout/weight_mean"] < 1.1


@pytest.mark.parametrize("stage", ["reward", "ppo"])
def test_a_resume_gives_the_bits_of_an_uninterrupted_run(
    stage, runs, lora_config, tmp_path
):
    workdir = shutil.copytree(runs(stage), tmp_path / stage)
    steps = Checkpoints(workdir, keep=None).steps()
    for step in steps[1:]:
        shutil.rmtree(workdir / "checkpoints" / str(step))
    (workdir / "summary.json").unlink()
    fields = {"save_every": 1, "eval_every": 1, "keep_checkpoints": 9}
    if stage == "ppo":
        fields["reward_model"] = str(runs("reward"))
    run(lora_config(stage, **fields), workdir)
    assert numbers(workdir) == numbers(runs(stage))


def test_other_runs_start_from_adapters(runs, lora_config, stage_config, tmp_path):
    """These adapters go on; other ones are refused; full training merges them."""
    start = str(runs("sft"))
    fields = {"init_from": start, "num_samples": 0}
    config = lora_config("sft")
    config.update(fields)
    config.optimizer.learning_rate = 0.0
    run(config, tmp_path / "on")
    before, after = weights.load_model(start), weights.load_model(tmp_path / "on")
    jax.tree.map(np.testing.assert_array_equal, before, after)
    config.lora.rank = 2
    with pytest.raises(ValueError, match=r"start from have lora.rank=4, not 2: set"):
        run(config, tmp_path / "other")
    config = stage_config("sft", **fields)
    config.optimizer.learning_rate = 0.0
    run(config, tmp_path / "full")
    full = weights.load_model(tmp_path / "full")
    assert full.config.lora is None
    tokens = jnp.arange(12).reshape(2, 6)
    np.testing.assert_allclose(full(tokens), before(tokens), atol=1e-5)


def test_a_wrong_base_is_named(runs, model_folders, tmp_path):
    moved = shutil.copytree(runs("sft"), tmp_path / "run")
    base = shutil.copytree(model_folders[0], tmp_path / "base")
    step = max(path.name for path in (moved / "checkpoints").iterdir())
    path = moved / "checkpoints" / step / "meta" / "metadata"
    (moved / "checkpoints" / step / "checksums.json").unlink()
    meta = json.loads(path.read_text())
    del meta["checksums"]
    record = meta["models"]["model"]["base"]
    record |= {"folder": "/gone", "from_workdir": "../base/checkpoints/0"}
    path.write_text(json.dumps(meta))
    weights.load_model(moved)  # the base has moved with the run
    shutil.rmtree(base)
    with pytest.raises(FileNotFoundError, match=r"need their base.* /gone \(step 0, "):
        weights.load_model(moved)
    shutil.copytree(model_folders[1], base)
    with pytest.raises(ValueError, match=r"base /gone \(step 0.*is another model"):
        weights.load_model(moved)


@pytest.mark.parametrize(
    ("stage", "fields", "message"),
    [
        ("sft", {"init_from": ""}, "lora.rank=4 adapts a model that exists"),
        ("sft", {"lora.rank": 64}, "lora.rank=64 is above the model's width 32"),
        ("sft", {"lora.maps": "q_proj"}, "no linear map .* are: attention.key_value"),
        ("ppo", {"offload_frozen": True}, "offload_frozen=True is for a reference of"),
        ("ppo", {"lora.rank": 0, "rollout_param_dtype": "merged"}, "merges adapters"),
        ("sft", {"optimizer.fused": True, "microbatches": 2}, "set microbatches=1"),
    ],
)
def test_what_cannot_be(stage, fields, message, lora_config, tmp_path):
    config = lora_config(stage)
    config.update_from_flattened_dict(fields)
    with pytest.raises(ValueError, match=message):
        run(config, tmp_path)
