"""GGUF files to Hugging Face folders: every architecture, every type of numbers."""

import re

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file

from rlhf_jax.data.tokenizers.chat_formats import FORMATS
from rlhf_jax.data.tokenizers.tokenizer import load_tokenizer
from rlhf_jax.files import read_json
from rlhf_jax.launching.convert import convert
from rlhf_jax.training import weights
from tests.launching import gguf_files as files

ARCHS = ("llama", "qwen2", "qwen3", "chatglm", "glm4")


def converted(tmp_path, arch="llama", tensors=None, **how):
    if tensors is None:
        tensors = files.in_gguf(arch, files.tensors_of(arch))
    files.write(tmp_path / "model.gguf", arch, tensors, **how)
    convert(tmp_path / "model.gguf", tmp_path / "hf")
    return tmp_path / "hf"


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_1"])
def test_a_file_becomes_the_folder_it_was_made_from(arch, kind, tmp_path):
    """Rows of Llama's q and k are back in their places, in every quantisation: a row
    is quantised by itself, wherever it stands."""
    tensors = files.tensors_of(arch)
    folder = converted(tmp_path, arch, kind=kind)
    written = load_file(folder / "model.safetensors")
    assert written.keys() == tensors.keys()
    which = gguf.GGMLQuantizationType[kind]
    for name, x in tensors.items():
        if x.ndim > 1:
            x = gguf.dequantize(gguf.quantize(x, which), which)
        np.testing.assert_array_equal(written[name], x, err_msg=name)
    config = read_json(folder / "config.json")
    assert config["model_type"] == {"chatglm": "glm"}.get(arch, arch)
    assert config["rope_theta"] == 100000.0 and config["rms_norm_eps"] == 1e-5
    assert config["tie_word_embeddings"] == (arch == "llama")
    model = weights.load_model(folder)
    assert model.config.num_layers == files.LAYERS
    assert model.config.qkv_bias == (arch in ("qwen2", "chatglm"))


def test_joint_matrices_are_split(tmp_path):
    """Files made from ChatGLM's remote code hold q, k and v in one matrix."""
    tensors = files.tensors_of("chatglm")
    joint = files.in_gguf("chatglm", tensors, joint=True)
    folder = converted(tmp_path, "chatglm", joint)
    written = load_file(folder / "model.safetensors")
    for name, x in tensors.items():
        np.testing.assert_array_equal(written[name], x, err_msg=name)


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"])
def test_blocks_of_256(kind, tmp_path):
    """The library reads the K quantisations and cannot write them: random bytes."""
    name = "blk.0.ffn_down.weight"
    tensors = files.tensors_of("llama") | {
        f"model.layers.{i}.mlp.{x}_proj.weight": np.zeros(shape, np.float32)
        for i in range(files.LAYERS)
        for x, shape in {
            "down": (files.WIDTH, 256),
            "gate": (256, files.WIDTH),
            "up": (256, files.WIDTH),
        }.items()
    }
    tensors = files.in_gguf("llama", tensors)
    which = gguf.GGMLQuantizationType[kind]
    size = gguf.GGML_QUANT_SIZES[which][1]
    # Two bytes below 0x3c are a finite float16.
    data = np.random.default_rng(0).integers(0, 0x3C, (files.WIDTH, size), np.uint8)
    tensors[name] = (data, kind)
    keys = {"feed_forward_length": 256}
    written = load_file(
        converted(tmp_path, tensors=tensors, keys=keys) / "model.safetensors"
    )
    expected = gguf.dequantize(data, which)
    assert expected.std() > 0
    np.testing.assert_array_equal(
        written["model.layers.0.mlp.down_proj.weight"], expected
    )


def test_the_tokenizer_of_a_file(tmp_path):
    folder = converted(tmp_path)
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.pad_id, tokenizer.stop_ids) == (0, (0,))
    assert tokenizer.chat_format == "template"
    ids = tokenizer.encode("hello hello")
    assert [files.TOKENS[i] for i in ids] == ["hello", "Ġhello"]
    assert tokenizer.decode(ids) == "hello hello"
    text = "naïve 中文 1234 <|end|>\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert 0 not in tokenizer.encode("<|end|>")
    messages = [{"role": "user", "content": "hello"}]
    ids, _ = FORMATS["template"](messages, tokenizer)
    start, end = 1, 0
    expected = [start, *tokenizer.encode("user: hello"), end]
    assert ids == [*expected, start, *tokenizer.encode("assistant: ")]
    config = read_json(folder / "config.json")
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, [0])


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("smollm", "a 12", ["a", "Ġ", "1", "2"]),
        ("gpt-2", "a 12!", ["a", "Ġ", "12", "!"]),
        ("llama-bpe", "1212 hello", ["12", "1", "2", "Ġhello"]),
        ("qwen2", "12", ["1", "2"]),
        ("glm4", "a\n1212", ["a", "Ċ", "12", "1", "2"]),
        ("chatglm-bpe", "'S12", ["'", "S", "12"]),
    ],
)
def test_texts_are_split_as_the_file_says(pre, text, pieces, tmp_path):
    """The only merge of digits is of 1 and 2, and no merge crosses a split."""
    tokenizer = load_tokenizer(converted(tmp_path, tokenizer={"pre": pre}))
    assert [files.TOKENS[i] for i in tokenizer.encode(text)] == pieces


def test_an_answer_ends_at_each_end_that_the_file_names(tmp_path):
    ends = {"eot_token_id": 1, "bos_token_id": None}
    folder = converted(tmp_path, tokenizer=ends)
    assert load_tokenizer(folder).stop_ids == (0, 1)
    assert read_json(folder / "generation_config.json")["eos_token_id"] == [0, 1]


@pytest.mark.parametrize(
    ("keys", "scaling"),
    [
        (
            {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
            {"rope_type": "linear", "factor": 4.0},
        ),
        (
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.original_context_length": 128,
                "rope.scaling.finetuned": True,
            },
            {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 128,
            },
        ),
    ],
)
def test_scaled_rotary_positions(keys, scaling, tmp_path):
    folder = converted(tmp_path, "qwen2", keys=keys)
    assert read_json(folder / "config.json")["rope_scaling"] == scaling


def test_llama_3_scales_by_a_tensor(tmp_path):
    """The divisors are those of llama.cpp's converter, written as loops."""
    base, factor, low, high, trained = 100000.0, 32.0, 1.0, 4.0, 8192
    divisors = []
    for i in range(files.HEAD_DIM // 2):
        length = 2 * np.pi * base ** (2 * i / files.HEAD_DIM)
        if length < trained / high:
            divisors.append(1.0)
        elif length > trained / low:
            divisors.append(factor)
        else:
            smooth = (trained / length - low) / (high - low)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    assert len(set(divisors)) > 1 and 1.0 in divisors and factor in divisors
    tensors = files.in_gguf("llama", files.tensors_of("llama"))
    tensors["rope_freqs.weight"] = np.array(divisors, np.float32)
    config = read_json(converted(tmp_path, tensors=tensors) / "config.json")
    assert config["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": trained,
    }
    tensors["rope_freqs.weight"] = np.linspace(1, 9, len(divisors), dtype=np.float32)
    files.write(tmp_path / "other.gguf", "llama", tensors)
    with pytest.raises(ValueError, match="is not the scaling of a published"):
        convert(tmp_path / "other.gguf", tmp_path / "other")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"arch": "gemma"}, "general.architecture='gemma' is not one of llama, qwen2"),
        ({"tokenizer": {"model": "llama"}}, "tokenizer.ggml.model='llama' is not supp"),
        ({"tokenizer": {"pre": "tekken"}}, "tokenizer.ggml.pre='tekken' is not one of"),
        ({"tokenizer": {"pre": None}}, "has no key tokenizer.ggml.pre"),
        ({"tokenizer": {"merges": ["q zz"]}}, "tokenizer.ggml.merges: .*"),
        ({"tokenizer": {"eos_token_id": 999}}, "eos_token_id=999 is none of"),
        ({"tokenizer": {"add_eos_token": True}}, "add_eos_token=True is not supported"),
        ({"tokenizer": {"precompiled_charsmap": [1]}}, "precompiled_charsmap"),
        ({"template": "ChatGLM4"}, "chat_template='ChatGLM4' is not a template"),
        ({"keys": {"expert_count": 8}}, "Keys that are not .*: llama.expert_count"),
        ({"keys": {"context_length": None}}, "has no key llama.context_length"),
        ({"keys": {"vocab_size": 17}}, "llama.vocab_size=17 is not supported"),
        ({"keys": {"rope.dimension_count": 4}}, "llama.rope.dimension_count=4 is not"),
        ({"keys": {"rope.scaling.type": "longrope"}}, "scaling.type='longrope' is not"),
        ({"keys": {"attention.head_count": [4, 4]}}, "head_count differs between lay"),
        ({"keys": {"embedding_length": 65}}, "misshapen: model.embed_tokens.weight"),
        ({"keys": {"block_count": 3}}, "missing: model.layers.2.input_layernorm"),
    ],
)
def test_what_is_not_understood_is_named(how, message, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        how = dict(how)
        arch = how.pop("arch", "llama")
        tensors = files.in_gguf("llama", files.tensors_of("llama"))
        converted(tmp_path, arch, tensors, **how)
    assert "model.gguf" in str(caught.value)
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("blk.0.ffn_gate_exps.weight", np.zeros((2, 2)), "ffn_gate_exps.weight is not"),
        ("blk.0.attn_qkv.weight", np.zeros((2, 2)), "attn_qkv.weight is not a tensor"),
        ("blk.0.attn_q.weight", np.zeros((63, 64)), "63 rows, no multiple of 16"),
        ("blk.1.ffn_up.bias", np.zeros(96), "unknown: model.layers.1.mlp.up_proj.bias"),
        (
            "output_norm.weight",
            np.zeros(64, np.int8),
            "output_norm.weight has the type",
        ),
        (
            "blk.1.attn_v.weight",
            None,
            "missing: model.layers.1.self_attn.v_proj.weight",
        ),
        ("token_embd.weight", None, "no tensor token_embd.weight"),
    ],
)
def test_a_tensor_that_is_not_understood_is_named(name, tensor, message, tmp_path):
    tensors = files.in_gguf("llama", files.tensors_of("llama"))
    if tensor is None:
        del tensors[name]
    else:
        is_float = tensor.dtype == np.float64
        tensors[name] = tensor.astype(np.float32) if is_float else tensor
    with pytest.raises(ValueError, match=re.escape(message)):
        converted(tmp_path, tensors=tensors)
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize("size", [0, 3, 100, 20000, -7])
def test_a_file_that_was_cut_off(size, tmp_path):
    files.write(
        tmp_path / "whole.gguf",
        "llama",
        files.in_gguf("llama", files.tensors_of("llama")),
    )
    data = (tmp_path / "whole.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(data[:size])
    with pytest.raises(ValueError, match=r"cut.gguf is not a GGUF file, or was cut"):
        convert(tmp_path / "cut.gguf", tmp_path / "hf")
    with pytest.raises(FileNotFoundError, match=r"There is no file .*none.gguf"):
        convert(tmp_path / "none.gguf", tmp_path / "hf")
