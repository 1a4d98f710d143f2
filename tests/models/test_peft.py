"""Adapters in PEFT's layout: what they add to the published matrices, computed here
from the tensors by PEFT's definition, W + scale B A."""

import dataclasses
import json
import math
import re

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rlhf_jax.files import read_json, write_json
from rlhf_jax.models import huggingface, peft_adapters
from rlhf_jax.models.adapters import adapted, merged, named, on_base
from rlhf_jax.models.lora import LoRA
from rlhf_jax.training.checkpoints import flatten
from tests.models.families import FAMILIES, random_model

LORA = LoRA(rank=4, alpha=6.0, maps="")
NAMINGS = {
    "v1": "v1",
    "v2": "remote",
    "v2 native": "native",
    "glm_edge": "native",
    "glm4": "native",
    "llama": "native",
    "qwen2": "native",
}
FLOAT32 = {"dtype": "float32", "param_dtype": "float32"}


def stirred(model):
    """The same model with random adapters, none of them zero."""

    def stir(path, x):
        if "lora_" not in jax.tree_util.keystr(path):
            return x
        rng = np.random.default_rng(x.size)
        return jax.numpy.asarray(0.1 * rng.normal(size=x.shape), x.dtype)

    return jax.tree_util.tree_map_with_path(stir, model)


def published(case, tmp_path):
    """A random base of a family, in a folder."""
    base = random_model(FAMILIES[case.split()[0]])
    naming = NAMINGS.get(case, "native")
    huggingface.save(base, tmp_path / "base", naming=naming)
    return base


def write(model, tmp_path):
    peft_adapters.write(
        model,
        tmp_path / "adapter",
        naming=huggingface.naming_of(tmp_path / "base"),
        base=str(tmp_path / "base"),
        fingerprint="abc",
    )


def merged_by_definition(tmp_path):
    """The model of the published tensors to which the adapter's products are added."""
    fields = read_json(tmp_path / "adapter" / "adapter_config.json")
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    added = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    for name, a in added.items():
        if "lora_A" not in name:
            continue
        module = re.fullmatch(r"base_model\.model\.(.*)\.lora_A\.weight", name)[1]
        kind = module.split(".")[-1]
        rank = fields["rank_pattern"].get(kind, fields["r"])
        alpha = fields["alpha_pattern"].get(kind, fields["lora_alpha"])
        assert a.shape[0] == rank
        scale = alpha / (math.sqrt(rank) if fields["use_rslora"] else rank)
        delta = scale * added[name.replace("lora_A", "lora_B")] @ a
        tensors[f"{module}.weight"] = tensors[f"{module}.weight"] + delta
    (tmp_path / "merged").mkdir()
    save_file(tensors, tmp_path / "merged" / "model.safetensors")
    write_json(
        tmp_path / "merged" / "config.json", read_json(tmp_path / "base/config.json")
    )
    return huggingface.load(tmp_path / "merged", **FLOAT32)


def check_equal(model, expected):
    ours, theirs = flatten(model), flatten(expected)
    assert ours.keys() == theirs.keys()
    for name, x in theirs.items():
        np.testing.assert_allclose(ours[name], x, atol=2e-6, err_msg=name)


SOME = {"rslora": True, "maps": "query|key_value|up"}


@pytest.mark.parametrize(
    ("case", "fields"),
    [(case, {}) for case in NAMINGS]
    + [("glm4", SOME)]
    + [(family, {"maps": "attention"}) for family in ("glm4_moe", "glm4_moe_lite")],
)
def test_writing(case, fields, tmp_path):
    """A written adapter adds what merging adds, and is read back the same."""
    base = published(case, tmp_path)
    lora = dataclasses.replace(LORA, **fields)
    model = stirred(adapted(base, lora, key=jax.random.key(0)))
    write(model, tmp_path)
    check_equal(merged_by_definition(tmp_path), merged(model))

    again, leaves = peft_adapters.read(tmp_path / "adapter", base.config)
    assert (again.rank, again.alpha, again.rslora) == (4, 6.0, lora.rslora)
    assert (again.maps == "") == (lora.maps == "")
    ours = {k: x for k, x in flatten(model).items() if "lora_" in k}
    assert ours.keys() == leaves.keys()
    for name, x in ours.items():
        np.testing.assert_array_equal(leaves[name], x, name)
    assert peft_adapters.base_of(tmp_path / "adapter")[1] == "abc"


def test_the_mlps_of_a_mixture_of_experts_are_refused(tmp_path):
    model = adapted(published("glm4_moe", tmp_path), LORA, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"leave out --naming=peft.*maps=attention"):
        write(model, tmp_path)


def write_theirs(tmp_path, modules, **fields):
    """An adapter as PEFT writes it: one A for a whole matrix."""
    rng = np.random.default_rng(1)
    shapes = {
        name: x.shape
        for name, x in load_file(tmp_path / "base" / "model.safetensors").items()
    }
    fields = {
        "peft_type": "LORA",
        "base_model_name_or_path": str(tmp_path / "base"),
        "r": 4,
        "lora_alpha": 8,
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "target_modules": sorted({x.split(".")[-1] for x in modules}),
    } | fields
    tensors = {}
    for module in modules:
        rank = fields["rank_pattern"].get(module.split(".")[-1], fields["r"])
        rows, columns = shapes[f"{module}.weight"]
        stem = f"base_model.model.{module}"
        a, b = rng.normal(size=(rank, columns)), rng.normal(size=(rows, rank))
        tensors[f"{stem}.lora_A.weight"] = 0.1 * a.astype(np.float32)
        tensors[f"{stem}.lora_B.weight"] = 0.1 * b.astype(np.float32)
    folder = tmp_path / "adapter"
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    write_json(folder / "adapter_config.json", fields)
    return folder


GLM = [f"model.layers.{i}.mlp.gate_up_proj" for i in (0, 1)]
LLAMA = [f"model.layers.{i}.self_attn.{x}_proj" for i in (0, 1) for x in "qvo"]
REMOTE = [
    f"transformer.encoder.layers.{i}.self_attention.query_key_value" for i in (0, 1)
]


@pytest.mark.parametrize(
    ("case", "modules", "fields", "rank"),
    [
        ("glm4", GLM, {}, 4),
        ("v2", REMOTE, {"use_rslora": True}, 4),
        ("v1", [x.replace("encoder.", "").replace("self_", "") for x in REMOTE], {}, 4),
        ("llama", LLAMA, {}, 4),
        (
            "llama",
            LLAMA,
            {"rank_pattern": {"o_proj": 6}, "alpha_pattern": {"v_proj": 3.0}},
            6,
        ),
        ("llama", LLAMA[3:], {"layers_to_transform": [1]}, 4),
        ("qwen2", LLAMA[:1], {"layers_to_transform": 0, "layers_pattern": "layers"}, 4),
        ("qwen2", LLAMA, {"target_modules": r".*\.[qvo]_proj"}, 4),
        ("qwen2", [LLAMA[0]], {"target_modules": [LLAMA[0]]}, 4),
        ("qwen2", LLAMA[::3], {"exclude_modules": ["v_proj", "o_proj"]}, 4),
    ],
)
def test_reading(case, modules, fields, rank, tmp_path):
    base = published(case, tmp_path)
    if "exclude_modules" in fields:
        fields = {"target_modules": ["q_proj", "v_proj", "o_proj"]} | fields
    folder = write_theirs(tmp_path, modules, **fields)
    own = peft_adapters.load(folder, base.config, param_dtype="float32")
    assert own.config.lora.rank == rank
    model = on_base(own, named(base))
    check_equal(merged(model), merged_by_definition(tmp_path))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_dora": True}, "use_dora=True is not supported"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\] is not"),
        ({"bias": "all"}, "bias='all' is not supported"),
        ({"peft_type": "IA3"}, "peft_type='IA3' is not supported"),
        ({"task_type": "SEQ_CLS"}, "task_type='SEQ_CLS' is not supported"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' is not"),
        ({"target_modules": ["q_proj", "wqkv"]}, "'wqkv' is no linear map .* k_proj"),
        ({"target_modules": "("}, r"target_modules='\(' is not of the type"),
        ({"layers_to_transform": [7]}, "leave no linear map"),
        ({"r": 0}, "r=0 is not of the type that PEFT writes"),
        (
            {"r": 5},
            r"v_proj.lora_A.weight is \(4, 32\), not \(5, 32\); .*; and 10 more",
        ),
        ({"rank_pattern": {"q_proj": "x"}}, "rank_pattern=.* is not of the type"),
        ({"lora_alpha": -1}, "lora_alpha=-1 is not of the type"),
        ({"target_modules": ["q_proj"]}, "unknown: .*o_proj.lora_A.weight; unknown"),
        (
            {"target_modules": ["q_proj", "v_proj", "o_proj", "k_proj"]},
            r"missing: .*k_proj.lora_A.weight \(4, 32\); missing.*; and 2 more",
        ),
    ],
)
def test_what_is_not_computed_is_refused_in_one_line(fields, message, tmp_path):
    base = published("qwen2", tmp_path)
    folder = write_theirs(tmp_path, LLAMA)
    old = json.loads((folder / "adapter_config.json").read_text())
    write_json(folder / "adapter_config.json", old | fields)
    with pytest.raises(ValueError, match=message) as error:
        peft_adapters.read(folder, base.config)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_missing_or_broken(tmp_path):
    base = published("qwen2", tmp_path)
    folder = write_theirs(tmp_path, LLAMA)
    weights, config = (
        folder / name for name in ("adapter_model.safetensors", "adapter_config.json")
    )
    with pytest.raises(ValueError, match="has adapters itself: merge them"):
        peft_adapters.read(folder, dataclasses.replace(base.config, lora=LORA))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match="is not a safetensors file, or was cut off"):
        peft_adapters.read(folder, base.config)
    weights.rename(folder / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"adapter_model.bin alone, a pickle"):
        peft_adapters.read(folder, base.config)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no adapter_model\.safetensors"):
        peft_adapters.read(folder, base.config)
    weights.write_bytes(whole)
    config.write_text("[]")
    with pytest.raises(ValueError, match=r"adapter_config\.json"):
        peft_adapters.read(folder, base.config)
