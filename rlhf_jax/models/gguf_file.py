"""Reading of GGUF, llama.cpp's file of one model: its config and its weights.

    keys, tensors = gguf_file.read("SmolLM2-135M-Instruct.Q4_1.gguf")
    fields = gguf_file.take_config(keys, tensors)
    weights = gguf_file.weights(fields, tensors)
    huggingface.write(folder, fields, weights, param_dtype="float32")

The result is a Hugging Face folder of the same architecture. Each `take_` function
removes from `keys` what it understands, so what is left is what nobody understood.
Source: github.com/ggml-org/ggml, docs/gguf.md, and llama.cpp's convert_hf_to_gguf.py.
"""

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from rlhf_jax.models.huggingface import Weight

# Our name of an architecture, which is transformers' model_type, and its class.
_KINDS = {
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "chatglm": ("glm", "GlmForCausalLM"),
    "glm4": ("glm4", "Glm4ForCausalLM"),
}
_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "post_attention_norm": "post_self_attn_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_mlp_layernorm",
}
# The number of the block, the parameter, and which of its arrays.
_NAME = re.compile(r"^(blk\.\d+\.)?(.*?)(\.weight|\.bias)?$")
_ROPE_FACTORS = "rope_freqs.weight"
# Keys that describe a file to people, or that only other programs read.
_DESCRIPTIVE = re.compile(r"GGUF\..*|general\..*|quantize\.imatrix\..*")


def read(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the metadata and the tensors of a file, both by name. The tensors are
    those of the library: mapped, and still quantised.

    Raises:
        ValueError: the file is no GGUF file, was cut off, or is one part of several.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        reader = gguf.GGUFReader(path)
        keys = {name: field.contents() for name, field in reader.fields.items()}
    except Exception as error:  # the library raises many types on a broken file
        raise ValueError(
            f"{path} is not a GGUF file, or was cut off: get it again ({error})."
        ) from None
    if reader.byte_order != "I":
        raise ValueError(f"{path} has the byte order of other machines.")
    parts = keys.pop("split.count", 1)
    if parts > 1:
        raise ValueError(
            f"{path} is one of {parts} files of a model: join them with llama.cpp's "
            "gguf-split --merge."
        )
    keys = {name: x for name, x in keys.items() if not name.startswith("split.")}
    return keys, {tensor.name: tensor for tensor in reader.tensors}


def take_config(keys: dict[str, Any], tensors: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of config.json.

    Raises:
        ValueError: names the key that is missing or has an unsupported value.
    """
    arch = keys.get("general.architecture")
    if arch not in _KINDS:
        raise ValueError(
            f"general.architecture={arch!r} is not one of {', '.join(_KINDS)}."
        )
    if keys.get("general.type", "model") != "model":
        raise ValueError(f"general.type={keys['general.type']!r} is not 'model'.")
    for name in [name for name in keys if _DESCRIPTIVE.fullmatch(name)]:
        del keys[name]

    def take(name: str, *default: Any) -> Any:
        key = f"{arch}.{name}"
        if key not in keys and not default:
            raise ValueError(f"The file has no key {key}.")
        value = keys.pop(key, *default)
        if isinstance(value, float):  # the decimal number that float32 has rounded
            return float(str(np.float32(value)))
        if isinstance(value, list):
            raise ValueError(f"{key} differs between layers, which is not supported.")
        return value

    def require(name: str, value: Any) -> None:
        given = take(name, value)
        if given != value:
            raise ValueError(f"{arch}.{name}={given!r} is not supported: not {value}.")

    if "token_embd.weight" not in tensors:
        raise ValueError("The file has no tensor token_embd.weight.")
    rows = int(tensors["token_embd.weight"].shape[1])
    require("vocab_size", rows)
    width, heads = take("embedding_length"), take("attention.head_count")
    head_dim = take("attention.key_length", width // heads)
    require("attention.value_length", head_dim)
    kind, name = _KINDS[arch]
    fields = {
        "architectures": [name],
        "model_type": kind,
        "vocab_size": rows,
        "hidden_size": width,
        "num_hidden_layers": take("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": take("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "intermediate_size": take("feed_forward_length"),
        "max_position_embeddings": take("context_length"),
        "rms_norm_eps": take("attention.layer_norm_rms_epsilon"),
        "hidden_act": "silu",
        "attention_bias": any(
            f"blk.0.{name}.bias" in tensors for name in ("attn_q", "attn_qkv")
        ),
        "rope_theta": take("rope.freq_base", 10000.0),
        "tie_word_embeddings": "output.weight" not in tensors,
    }
    if kind in ("glm", "glm4"):
        turned = take("rope.dimension_count", head_dim)
        fields["partial_rotary_factor"] = turned / head_dim
    else:
        require("rope.dimension_count", head_dim)
    scaling = _take_scaling(take, arch)
    if _ROPE_FACTORS in tensors:
        if scaling:
            raise ValueError(f"{_ROPE_FACTORS} beside {arch}.rope.scaling.type.")
        scaling = _llama3_scaling(fields, tensors)
    return fields | ({"rope_scaling": scaling} if scaling else {})


def _take_scaling(take: Callable, arch: str) -> dict[str, Any]:
    kind = take("rope.scaling.type", "none")
    if kind == "none":
        return {}
    if kind not in ("linear", "yarn"):
        raise ValueError(f"{arch}.rope.scaling.type={kind!r} is not supported.")
    take("rope.scaling.finetuned", None)  # says only how the model was made
    scaling = {"rope_type": kind, "factor": take("rope.scaling.factor")}
    if kind == "yarn":
        trained = take("rope.scaling.original_context_length")
        scaling["original_max_position_embeddings"] = trained
    return scaling


def _llama3_scaling(fields: dict[str, Any], tensors: dict[str, Any]) -> dict[str, Any]:
    """Return the setting of Llama 3.1 and later, which a file holds as the divisors of
    the frequencies; the published models differ in `factor` alone."""
    divisors = _dequantised(tensors[_ROPE_FACTORS])
    factor, low, high, trained = float(divisors.max()), 1.0, 4.0, 8192
    exponents = np.arange(0, fields["head_dim"], 2) / fields["head_dim"]
    turns = trained / (2 * np.pi * fields["rope_theta"] ** exponents)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    expected = 1 / ((1 - smooth) / factor + smooth)
    if divisors.shape != expected.shape or not np.allclose(
        divisors, expected, rtol=1e-4
    ):
        raise ValueError(
            f"{_ROPE_FACTORS} is not the scaling of a published Llama 3 model."
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": trained,
    }


def weights(fields: dict[str, Any], tensors: dict[str, Any]) -> dict[str, Weight]:
    """Return the tensors of a Hugging Face folder by name.

    Args:
        fields: the result of `take_config`.

    Raises:
        ValueError: lists the tensors that are not understood, or whose type the
            library cannot dequantise.
    """
    kind, h = fields["model_type"], fields["head_dim"]
    heads, kv_heads = fields["num_attention_heads"], fields["num_key_value_heads"]
    names = dict(_NAMES)
    if kind in ("glm", "glm4"):
        names["ffn_up"] = "mlp.gate_up_proj"
        del names["ffn_gate"]
    out, problems = {}, []
    for name, tensor in tensors.items():
        if name == _ROPE_FACTORS:
            continue
        block, stem, leaf = _NAME.findall(name)[0]
        layer = block.replace("blk.", "model.layers.")
        shape = tuple(int(x) for x in reversed(tensor.shape))
        read = partial(_dequantised, tensor)
        if not _can_dequantise(tensor):
            problems.append(f"{name} has the type {tensor.tensor_type.name}")
        elif stem == "attn_qkv" and block and kind in ("glm", "glm4"):
            start = 0
            for letter, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
                rows = slice(start, start + count * h)
                start = rows.stop
                part = partial(_rows, read, rows)
                target = f"{layer}self_attn.{letter}_proj{leaf}"
                out[target] = Weight((count * h, *shape[1:]), part)
            if shape[0] != start:
                problems.append(f"{name} has {shape[0]} rows instead of {start}")
        elif stem in names and leaf:
            if kind == "llama" and stem in ("attn_q", "attn_k"):
                if shape[0] % h:
                    problems.append(f"{name} has {shape[0]} rows, no multiple of {h}")
                read = partial(_halves, read, h)
            out[f"{layer}{names[stem]}{leaf}"] = Weight(shape, read)
        else:
            problems.append(f"{name} is not a tensor of this architecture")
    if problems:
        raise ValueError("\n  ".join(["Tensors that cannot be read:", *problems]))
    return out


def _can_dequantise(tensor: gguf.ReaderTensor) -> bool:
    try:
        gguf.dequantize(tensor.data[:1], tensor.tensor_type)
    except NotImplementedError:
        return False
    return True


def _dequantised(tensor: gguf.ReaderTensor) -> np.ndarray:
    return gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)


def _rows(read: Callable[[], np.ndarray], rows: slice) -> np.ndarray:
    return read()[rows]


def _halves(read: Callable[[], np.ndarray], head_dim: int) -> np.ndarray:
    """Undo llama.cpp's order of the rows of Llama's q and k, in which the two dims that
    turn together are neighbours: in transformers they are half a head apart."""
    x = read()
    pairs = x.reshape(-1, head_dim // 2, 2, *x.shape[1:])
    return pairs.swapaxes(1, 2).reshape(x.shape)
