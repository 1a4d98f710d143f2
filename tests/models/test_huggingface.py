"""Reading and writing of checkpoints, in every family's naming."""

import dataclasses
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from rlhf_jax.models import huggingface, huggingface_tensors
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.config import ChatGLMConfig
from rlhf_jax.models.heads import ScoreModel
from rlhf_jax.models.huggingface_config import namings
from tests.models.families import FAMILIES, random_model

FLOAT32 = {"dtype": "float32", "param_dtype": "float32"}
V1 = {"inner_hidden_size": 48, "vocab_size": 64, "bos_token_id": 60}
V1 |= {"gmask_token_id": 61, "mask_token_id": 62}
ALL_NAMINGS = [(f, n) for f, config in FAMILIES.items() for n in namings(config)]


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(jax.device_get(a), jax.device_get(b))


@pytest.mark.parametrize(("family", "naming"), ALL_NAMINGS)
def test_what_is_saved_is_loaded(family, naming, tmp_path):
    model = random_model(FAMILIES[family])
    huggingface.save(model, tmp_path, naming=naming)
    assert_same(huggingface.load(tmp_path, **FLOAT32), model)


@pytest.mark.parametrize(("family", "naming"), ALL_NAMINGS)
def test_a_score_model_survives_with_its_offset(family, naming, tmp_path):
    backbone = random_model(dataclasses.replace(FAMILIES[family], tied=True))
    model = ScoreModel(backbone, rngs=nnx.Rngs(0))
    model.head.bias[...] = jnp.array([0.25])
    model.offset[...] = jnp.float32(1.0)
    huggingface.save(model, tmp_path, naming=naming)
    loaded = huggingface.load(tmp_path, **FLOAT32)
    assert_same(loaded.backbone, model.backbone)
    np.testing.assert_array_equal(loaded.head.kernel[...], model.head.kernel[...])
    shift = loaded.head.bias[0] - loaded.offset[...]
    np.testing.assert_allclose(shift, -0.75, rtol=1e-6)


def test_large_models_are_saved_in_shards_with_an_index(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface, "SHARD_BYTES", 20_000)
    model = random_model(FAMILIES["glm4"])
    huggingface.save(model, tmp_path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(f.name for f in tmp_path.glob("*.safetensors"))
    assert len(files) > 2
    assert sorted(set(index["weight_map"].values())) == files
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1
    assert_same(huggingface.load(tmp_path, **FLOAT32), model)
    (tmp_path / files[0]).unlink()
    with pytest.raises(FileNotFoundError, match=files[0]):
        huggingface.load(tmp_path, **FLOAT32)


@pytest.mark.devices(8)
@pytest.mark.parametrize("chunk", [2**26, 2000])
@pytest.mark.parametrize("family", ["v1", "v2", "glm4", "llama", "qwen3"])
def test_with_a_mesh_every_device_holds_its_slice(family, chunk, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_tensors, "CHUNK_BYTES", chunk)
    auto = (jax.sharding.AxisType.Auto,) * 3
    mesh = jax.make_mesh((1, 4, 2), ("data", "fsdp", "tensor"), axis_types=auto)
    model = random_model(FAMILIES[family])
    huggingface.save(model, tmp_path)
    loaded = huggingface.load(tmp_path, **FLOAT32, mesh=mesh)
    assert_same(loaded, model)
    kernel = loaded.blocks.mlp.up.kernel[...]
    assert {s.data.size for s in kernel.addressable_shards} == {kernel.size // 8}


def test_loading_takes_less_of_the_host_than_its_largest_tensor(tmp_path, monkeypatch):
    """The host's memory is that of numpy arrays; device arrays do not count."""
    config = ChatGLMConfig(
        vocab_size=2048,
        width=128,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        ffn_width=256,
        context_length=64,
    )
    model = random_model(config)
    huggingface.save(model, tmp_path)
    monkeypatch.setattr(huggingface_tensors, "CHUNK_BYTES", 2**17)
    huggingface.load(tmp_path, **FLOAT32)  # compile first: the compiler allocates too
    tracemalloc.start()
    huggingface.load(tmp_path, **FLOAT32)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.2 * 4 * config.vocab_size * config.width


def test_types_are_those_asked_for(tmp_path):
    huggingface.save(random_model(FAMILIES["v2"]), tmp_path)
    model = huggingface.load(tmp_path, dtype="bfloat16", param_dtype="float16")
    assert model.config.dtype == "bfloat16"
    assert {x.dtype for x in jax.tree.leaves(model)} == {jnp.dtype("float16")}


def test_a_head_stored_twice_is_tied_and_one_that_differs_is_kept(tmp_path):
    model = random_model(FAMILIES["v1"])
    huggingface.save(model, tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    assert "lm_head.weight" in tensors
    assert huggingface.load(tmp_path, **FLOAT32).config.tied
    tensors["lm_head.weight"][3, 4] += 1
    save_file(tensors, file)
    loaded = huggingface.load(tmp_path, **FLOAT32)
    assert not loaded.config.tied
    difference = np.asarray(loaded.output_matrix - model.output_matrix)
    assert np.argwhere(difference).tolist() == [[4, 3]]


@pytest.fixture
def folder(tmp_path):
    huggingface.save(random_model(FAMILIES["v2"]), tmp_path, naming="remote")
    return tmp_path


def edit_tensors(folder, edit):
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def edit_config(folder, **changes):
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | changes))


def test_all_wrong_tensors_are_listed_at_once(folder):
    def edit(tensors):
        del tensors["transformer.encoder.layers.1.mlp.dense_4h_to_h.weight"]
        del tensors["transformer.encoder.final_layernorm.weight"]
        tensors["transformer.adapter.weight"] = np.zeros(3, np.float32)
        name = "transformer.output_layer.weight"
        tensors[name] = tensors[name][:-1].copy()

    edit_tensors(folder, edit)
    with pytest.raises(ValueError) as error:
        huggingface.load(folder, **FLOAT32)
    for line in (
        "missing: transformer.encoder.layers.1.mlp.dense_4h_to_h.weight (32, 48)",
        "missing: transformer.encoder.final_layernorm.weight (32,)",
        "unknown: transformer.adapter.weight",
        "misshapen: transformer.output_layer.weight (63, 32) instead of (64, 32)",
    ):
        assert line in str(error.value)


def test_layers_without_end_are_refused_before_they_are_counted(folder):
    edit_config(folder, num_layers=10**12)
    with pytest.raises(ValueError, match=r"1000000000000 layers, and only 17 tensors"):
        huggingface.load(folder, **FLOAT32)


@pytest.mark.parametrize(
    "name",
    [
        "transformer.rotary_pos_emb.inv_freq",
        "transformer.layers.0.attention.rotary_emb.inv_freq",
        "transformer.encoder.layers.0.self_attention.rotary_emb.inv_freq",
        "model.rotary_emb.original_inv_freq",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.layers.0.self_attn.rotary_emb.cos_cached",
    ],
)
def test_rotary_frequencies_are_ignored_and_nothing_else(folder, name):
    frequencies = np.ones(4, np.float32)
    edit_tensors(folder, lambda t: t.update({name: frequencies}))
    huggingface.load(folder, **FLOAT32)
    edit_tensors(folder, lambda t: t.update({name + "2": frequencies}))
    with pytest.raises(ValueError, match=f"unknown: {name}2"):
        huggingface.load(folder, **FLOAT32)


def test_p_tuning_checkpoints_are_refused_by_name(folder):
    name = "transformer.prefix_encoder.embedding.weight"
    edit_tensors(folder, lambda t: t.update({name: np.ones((4, 4), np.float32)}))
    with pytest.raises(ValueError, match="prefix_encoder"):
        huggingface.load(folder, **FLOAT32)


def test_pickles_are_refused_with_a_way_out(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"safetensors\.torch\.save_file"):
        huggingface.load(folder, **FLOAT32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2'"),
        ({"rmsnorm": False}, "rmsnorm=False"),
        ({"add_bias_linear": True}, "add_bias_linear=True"),
        ({"quantization_bit": 4}, "quantization_bit=4"),
        ({"inner_hidden_size": 48, "vocab_size": 150528}, "early release"),
        ({"inner_hidden_size": 48}, "has no 'vocab_size'"),
        (V1 | {"gmask_token_id": 10**9}, "gmask_token_id=1000000000 is not an id"),
        (V1 | {"bos_token_id": None}, "bos_token_id=None is not an id"),
        ({"rope_theta": 20000.0}, "rope_theta=20000.0 is not supported"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling: type='yarn' is not"),
        ({"rope_parameters": "yarn"}, "rope_parameters='yarn' is not an object"),
    ],
)
def test_unsupported_configs_are_refused(folder, changes, message):
    edit_config(folder, **changes)
    with pytest.raises(ValueError, match=message):
        huggingface.load(folder, **FLOAT32)


@pytest.mark.parametrize("family", ["v1", "v2", "glm4"])
def test_default_rope_settings_change_nothing(family, tmp_path):
    naming = {"v1": "v1", "v2": "remote"}.get(family)
    huggingface.save(random_model(FAMILIES[family]), tmp_path, naming=naming)
    default = {"rope_type": "default", "type": "default", "rope_theta": None}
    edit_config(tmp_path, rope_scaling=default, rope_parameters=default)
    assert huggingface.load(tmp_path, **FLOAT32).config == FAMILIES[family]


@pytest.mark.parametrize("names", [["a" * 5000], ["a\0b"], ["folder.safetensors"]])
def test_an_index_of_what_is_no_file_is_refused(folder, names):
    (folder / "model.safetensors").unlink()
    (folder / "folder.safetensors").mkdir()
    index = {"weight_map": dict(enumerate(names))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    message = r"lacks files of its index|is not a safetensors file"
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        huggingface.load(folder, **FLOAT32)


def test_empty_folders_and_impossible_namings_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        huggingface.load(tmp_path, **FLOAT32)
    with pytest.raises(ValueError, match=r"possible: .'native'"):
        huggingface.save(random_model(FAMILIES["glm4"]), tmp_path, naming="remote")


def test_chatglm2_6b_32k_alone_divides_positions(folder):
    edit_config(folder, rope_ratio=50)
    config = huggingface.load(folder, **FLOAT32).config
    assert (config.rotary_base, config.position_divisor) == (500000.0, 1.0)
    edit_config(folder, _name_or_path="THUDM/chatglm2-6b-32k")
    config = huggingface.load(folder, **FLOAT32).config
    assert (config.rotary_base, config.position_divisor) == (10000.0, 50.0)


def test_both_spellings_of_native_configs_are_read(tmp_path):
    config = dataclasses.replace(
        FAMILIES["glm4"], rotary_base=123.0, rotary_fraction=0.25
    )
    model = random_model(config)
    huggingface.save(model, tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    rope = {k: fields.pop(k) for k in ("rope_theta", "partial_rotary_factor")}
    fields["rope_parameters"] = rope | {"rope_type": "default"}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert huggingface.load(tmp_path, **FLOAT32).config == config


def test_weights_that_are_not_finite_are_named(folder):
    name = "transformer.encoder.layers.1.mlp.dense_4h_to_h.weight"
    for value in (np.nan, np.inf, -np.inf):
        edit_tensors(folder, lambda t, x=value: t[name].__setitem__((3, 4), x))
        with pytest.raises(ValueError, match=r"NaN or infinite, in blocks.mlp.down"):
            huggingface.load(folder, **FLOAT32)


def test_weights_that_a_narrow_type_cannot_hold_are_named(folder):
    edit_tensors(folder, lambda t: t[OUTPUT].__setitem__((3, 4), 1e6))
    huggingface.load(folder, **FLOAT32)
    with pytest.raises(ValueError, match=r"head.kernel: .* dtype is too narrow"):
        huggingface.load(folder, dtype="float16", param_dtype="float16")


OUTPUT = "transformer.output_layer.weight"


def test_another_set_of_files_in_the_folder_is_not_read(folder):
    expected = huggingface.load(folder, **FLOAT32)
    others = {k: x + 1 for k, x in load_file(folder / "model.safetensors").items()}
    save_file(others, folder / "old.safetensors")
    save_file(others, folder / "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(others, "model-00001-of-00001.safetensors")}
    (folder / huggingface.INDEX).write_text(json.dumps(index))
    assert_same(huggingface.load(folder, **FLOAT32), expected)
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    found = huggingface.load(folder, **FLOAT32)  # of the index, and not its neighbours
    np.testing.assert_array_equal(found.head.kernel[...].T, others[OUTPUT])
    (folder / huggingface.INDEX).unlink()
    with pytest.raises(ValueError, match=r"is in .*safetensors and in .*two sets"):
        huggingface.load(folder, **FLOAT32)


@pytest.mark.parametrize("sizes", [(20_000, 10**9), (10**9, 20_000), (20_000, 9_000)])
def test_a_model_saved_over_another_is_the_one_that_is_loaded(
    sizes, tmp_path, monkeypatch
):
    for seed, size in enumerate(sizes):
        monkeypatch.setattr(huggingface, "SHARD_BYTES", size)
        model = random_model(FAMILIES["glm4"], seed)
        huggingface.save(model, tmp_path)
    assert_same(huggingface.load(tmp_path, **FLOAT32), model)
    files = {path.name for path in tmp_path.glob("*.safetensors")}
    if (tmp_path / huggingface.INDEX).is_file():
        index = json.loads((tmp_path / huggingface.INDEX).read_text())
        assert files == set(index["weight_map"].values())
    else:
        assert files == {"model.safetensors"}


def test_a_save_that_was_stopped_leaves_no_model(tmp_path, monkeypatch):
    huggingface.save(random_model(FAMILIES["glm4"]), tmp_path)

    def full(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(huggingface, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        huggingface.save(random_model(FAMILIES["glm4"], 1), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        huggingface.load(tmp_path, **FLOAT32)


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/passwd", "sub/x.safetensors", "..", ""]
)
def test_an_index_cannot_name_files_elsewhere(folder, name):
    (folder / "model.safetensors").rename(folder.parent / "x.safetensors")
    (folder / huggingface.INDEX).write_text(json.dumps({"weight_map": {OUTPUT: name}}))
    with pytest.raises(ValueError, match="no weight_map of file names in this folder"):
        huggingface.load(folder, **FLOAT32)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.rotary_emb.inv_freq",
        "model.rotary_emb.original_inv_freq",
    ],
)
def test_rotary_buffers_of_native_folders_are_ignored(name, tmp_path):
    model = random_model(FAMILIES["glm4"])
    huggingface.save(model, tmp_path)
    edit_tensors(tmp_path, lambda t: t.update({name: np.ones(4, np.float32)}))
    assert_same(huggingface.load(tmp_path, **FLOAT32), model)


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_scaling": {"rope_type": "default"}},
        {"rope_scaling": {"type": "default"}},
        {"rope_scaling": {}, "rope_parameters": None},
        {"rope_parameters": {"type": "default", "rope_theta": 10000.0}},
        {"rope_parameters": {"rope_type": "default", "factor": None}},
    ],
)
def test_rope_settings_that_say_default_under_either_key_are_read(changes, tmp_path):
    model = random_model(FAMILIES["glm4"])
    huggingface.save(model, tmp_path)
    edit_config(tmp_path, **changes)
    assert_same(huggingface.load(tmp_path, **FLOAT32), model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_parameters": {"type": "yarn", "factor": 4.0}}, "rope_parameters: type"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type='yarn'"),
        ({"rope_parameters": {"factor": 4.0}}, "rope_parameters: factor=4.0"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling: type"),
        ({"rope_scaling": {"rope_type": "dynamic"}}, "rope_scaling: rope_type"),
        ({"rope_parameters": {"full_attention": {}}}, "full_attention"),
        ({"rope_parameters": {"rope_theta": 5.0}}, "rope_theta is both 10000.0 and 5"),
        ({"rope_scaling": [1]}, "config.json of a 'glm4' model"),
        ({"rope_type": "yarn"}, "rope_type='yarn'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"attn_logit_softcapping": 30.0}, "attn_logit_softcapping=30.0"),
    ],
)
def test_rope_settings_that_are_not_computed_are_refused(changes, message, tmp_path):
    huggingface.save(random_model(FAMILIES["glm4"]), tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        huggingface.load(tmp_path, **FLOAT32)


@pytest.mark.parametrize(
    "changes",
    [
        {"seq_length": 10**40},
        {"num_layers": -1},
        {"num_layers": True},
        {"hidden_size": 0.5},
        {"layernorm_epsilon": float("nan")},
        {"layernorm_epsilon": -1e-5},
        {"layernorm_epsilon": 10**400},
        {"rope_ratio": float("inf")},
        {"rope_ratio": 10**400},
        {"rope_ratio": "much"},
        {"rope_scaling": {"type": "linear"}},
        {"multi_query_group_num": 0},
        {"kv_channels": 17},
        {"add_qkv_bias": "no"},
        {"tie_word_embeddings": None},
        {"_name_or_path": 7},
        {"padded_vocab_size": "many"},
    ],
)
def test_absurd_configs_are_refused(folder, changes):
    edit_config(folder, **changes)
    with pytest.raises(ValueError, match=r"config\.json of a 'chatglm' model"):
        huggingface.load(folder, **FLOAT32)


@pytest.mark.parametrize("name", ["config.json", huggingface.INDEX])
def test_brackets_without_end_are_no_json(folder, name):
    if name == huggingface.INDEX:
        (folder / "model.safetensors").rename(folder / "other.safetensors")
    (folder / name).write_text("[" * 100_000)
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        huggingface.load(folder, **FLOAT32)


MEASURE = """
import ctypes, gc, sys, threading
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
from rlhf_jax.models import huggingface

def held():  # what the process itself holds: no mapped files
    lines = open("/proc/self/status").read().splitlines()
    return next(int(x.split()[1]) * 1024 for x in lines if x.startswith("RssAnon"))

auto = (jax.sharding.AxisType.Auto,) * 3
mesh = jax.make_mesh((1, 4, 2), ("data", "fsdp", "tensor"), axis_types=auto)
settings = {"dtype": "float32", "param_dtype": "float32", "mesh": mesh}
huggingface.load(sys.argv[1], **settings)  # compile first: the compiler allocates too
gc.collect()
ctypes.CDLL("libc.so.6").malloc_trim(0)  # give back what is free
before, peak, done = held(), 0, threading.Event()

def watch():
    global peak
    while not done.wait(0.001):
        peak = max(peak, held())

watcher = threading.Thread(target=watch)
watcher.start()
model = huggingface.load(sys.argv[1], **settings)
done.set()
watcher.join()
print(peak - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux only.")
def test_a_process_holds_no_more_than_its_devices_and_one_tensor(tmp_path):
    """The whole process, measured from outside of Python, on a mesh of 8 devices."""
    config = dataclasses.replace(
        FAMILIES["v2"], vocab_size=65536, width=256, num_layers=4, ffn_width=4096
    )
    model = jax.jit(lambda: ChatGLM(config, rngs=nnx.Rngs(0)))()
    huggingface.save(model, tmp_path)
    total = sum(x.nbytes for x in jax.tree.leaves(model))
    largest = 4 * config.vocab_size * config.width
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert 0.9 * total < int(run.stdout) < total + 1.2 * largest
