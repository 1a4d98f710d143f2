"""Tiny GGUF files with random weights, written as llama.cpp's converter writes them."""

import gguf
import numpy as np
from transformers.convert_slow_tokenizer import bytes_to_unicode

WIDTH, HEADS, KV_HEADS, HEAD_DIM, FFN, LAYERS = 64, 4, 2, 16, 96, 2
SPECIAL = ("<|end|>", "<|start|>")
MERGES = ("h e", "l l", "he ll", "hell o", "Ġ hello", "1 2")
TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}: {{ m['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant: {% endif %}"
)
BYTES = sorted(bytes_to_unicode().values())
# Special tokens come first, as in SmolLM2; the last token only fills the vocabulary.
TOKENS = [*SPECIAL, *BYTES, *(m.replace(" ", "") for m in MERGES), "[PAD264]"]
CONTROL, UNUSED = 3, 5
TOKENIZER = {
    "model": "gpt2",
    "pre": "smollm",
    "tokens": TOKENS,
    "token_type": [CONTROL] * 2 + [1] * (len(TOKENS) - 3) + [UNUSED],
    "merges": list(MERGES),
    "bos_token_id": 1,
    "eos_token_id": 0,
    "padding_token_id": 0,
    "add_bos_token": False,
}


def tensors_of(arch: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Return the tensors of the Hugging Face model of an architecture."""
    rng = np.random.default_rng(seed)
    q, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    shapes = {"model.embed_tokens.weight": (len(TOKENS), WIDTH)}
    shapes |= {"model.norm.weight": (WIDTH,)}
    if arch != "llama":
        shapes["lm_head.weight"] = (len(TOKENS), WIDTH)
    for i in range(LAYERS):
        layer = {
            "input_layernorm.weight": (WIDTH,),
            "post_attention_layernorm.weight": (WIDTH,),
            "self_attn.q_proj.weight": (q, WIDTH),
            "self_attn.k_proj.weight": (kv, WIDTH),
            "self_attn.v_proj.weight": (kv, WIDTH),
            "self_attn.o_proj.weight": (WIDTH, q),
            "mlp.down_proj.weight": (WIDTH, FFN),
        }
        if arch in ("chatglm", "glm4"):
            layer["mlp.gate_up_proj.weight"] = (2 * FFN, WIDTH)
        else:
            layer["mlp.gate_proj.weight"] = layer["mlp.up_proj.weight"] = (FFN, WIDTH)
        if arch in ("chatglm", "qwen2"):
            sizes = {"q": q, "k": kv, "v": kv}
            layer |= {f"self_attn.{x}_proj.bias": (n,) for x, n in sizes.items()}
        if arch == "qwen3":
            names = ("self_attn.q_norm.weight", "self_attn.k_norm.weight")
            layer |= dict.fromkeys(names, (HEAD_DIM,))
        if arch == "glm4":
            names = ("post_self_attn_layernorm.weight", "post_mlp_layernorm.weight")
            layer |= dict.fromkeys(names, (WIDTH,))
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    return {
        name: rng.normal(1.0 if len(shape) == 1 else 0.0, 0.2, shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def keys_of(arch: str) -> dict:
    """Return the metadata of an architecture."""
    turned = HEAD_DIM // 2 if arch in ("chatglm", "glm4") else HEAD_DIM
    return {
        "block_count": LAYERS,
        "context_length": 512,
        "embedding_length": WIDTH,
        "feed_forward_length": FFN,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 100000.0,
        "rope.dimension_count": turned,
    }


def to_neighbours(x: np.ndarray, heads: int) -> np.ndarray:
    """Reorder rows as the `permute` of llama.cpp's convert_hf_to_gguf.py."""
    halves = x.reshape(heads, 2, x.shape[0] // heads // 2, *x.shape[1:])
    return halves.swapaxes(1, 2).reshape(x.shape)


def in_gguf(arch: str, tensors: dict[str, np.ndarray], joint: bool = False) -> dict:
    """Return Hugging Face's tensors under the names and in the order of llama.cpp.

    Args:
        joint: True joins q, k and v, as in files made from ChatGLM's remote code.
    """
    kind = {
        "llama": gguf.MODEL_ARCH.LLAMA,
        "qwen2": gguf.MODEL_ARCH.QWEN2,
        "qwen3": gguf.MODEL_ARCH.QWEN3,
        "chatglm": gguf.MODEL_ARCH.CHATGLM,
        "glm4": gguf.MODEL_ARCH.GLM4,
    }[arch]
    names = gguf.get_tensor_name_map(kind, LAYERS)
    out = {}
    for name, x in tensors.items():
        if arch == "llama" and ".q_proj." in name:
            x = to_neighbours(x, HEADS)
        if arch == "llama" and ".k_proj." in name:
            x = to_neighbours(x, KV_HEADS)
        out[names.get_name(name, (".weight", ".bias"))] = x
    if joint:
        for i in range(LAYERS):
            for leaf in ("weight", "bias"):
                parts = [out.pop(f"blk.{i}.attn_{x}.{leaf}") for x in "qkv"]
                out[f"blk.{i}.attn_qkv.{leaf}"] = np.concatenate(parts)
    return out


def write(
    path,
    arch: str,
    tensors: dict[str, np.ndarray],
    *,
    kind: str = "F32",
    keys: dict | None = None,
    tokenizer: dict | None = None,
    template: str | None = TEMPLATE,
) -> None:
    """Write a file, with its matrices in a quantisation of the library.

    Args:
        keys, tokenizer: changes of the metadata; None removes a key.
    """
    writer = gguf.GGUFWriter(path, arch)
    own = keys_of(arch) | (keys or {})
    entries = {f"{arch}.{name}": x for name, x in own.items()}
    own = TOKENIZER | (tokenizer or {})
    entries |= {f"tokenizer.ggml.{name}": x for name, x in own.items()}
    entries |= {"tokenizer.chat_template": template}
    for name, x in entries.items():
        if isinstance(x, bool):
            writer.add_bool(name, x)
        elif isinstance(x, int):
            writer.add_uint32(name, x)
        elif isinstance(x, float):
            writer.add_float32(name, x)
        elif isinstance(x, str):
            writer.add_string(name, x)
        elif x is not None:
            writer.add_array(name, x)
    quantisation = gguf.GGMLQuantizationType[kind]
    for name, x in tensors.items():
        if isinstance(x, tuple):  # the bytes of a matrix, and their type
            writer.add_tensor(name, x[0], raw_dtype=gguf.GGMLQuantizationType[x[1]])
        elif x.ndim == 1:
            writer.add_tensor(name, x)
        else:
            bits = gguf.quantize(x, quantisation)
            writer.add_tensor(name, bits, raw_dtype=quantisation)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
