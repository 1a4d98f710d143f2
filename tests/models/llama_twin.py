"""A second implementation of Llama, Mistral, Qwen2 and Qwen3, in float64: one row, from
config.json and the published tensors."""

import math

import numpy as np


def logits(fields, tensors, tokens):
    """Return logits [T, V] of a row of tokens [T]."""
    x = {name: np.asarray(t, np.float64) for name, t in tensors.items()}
    heads, groups = fields["num_attention_heads"], fields["num_key_value_heads"]
    size = fields.get("head_dim") or fields["hidden_size"] // heads
    eps = fields["rms_norm_eps"]

    def norm(h, name):
        return h / np.sqrt((h**2).mean(-1, keepdims=True) + eps) * x[f"{name}.weight"]

    def linear(h, name):
        return h @ x[f"{name}.weight"].T + x.get(f"{name}.bias", 0.0)

    cos, sin = turns(fields, size, len(tokens))

    def turn(h):  # [T, n, size]: dim i turns with dim i + size / 2
        first, second = np.split(h, 2, axis=-1)
        return np.concatenate(
            [first * cos - second * sin, second * cos + first * sin], axis=-1
        )

    ahead = np.arange(len(tokens))[:, None] - np.arange(len(tokens))
    seen = ahead >= 0
    is_qwen = fields["model_type"] in ("qwen2", "qwen3")
    window = fields.get("sliding_window")
    if window and (fields.get("use_sliding_window") or not is_qwen):
        seen &= ahead < window
    h = x["model.embed_tokens.weight"][tokens]
    for i in range(fields["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        a = norm(h, layer + "input_layernorm")
        q, k, v = (
            linear(a, f"{layer}self_attn.{n}_proj").reshape(len(tokens), -1, size)
            for n in "qkv"
        )
        if f"{layer}self_attn.q_norm.weight" in x:
            q = norm(q, layer + "self_attn.q_norm")
            k = norm(k, layer + "self_attn.k_norm")
        q, k = turn(q), turn(k)
        k, v = (np.repeat(t, heads // groups, axis=1) for t in (k, v))
        scores = np.einsum("tnh,snh->nts", q, k) / math.sqrt(size)
        scores = np.where(seen, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        a = np.einsum("nts,snh->tnh", weights, v).reshape(len(tokens), -1)
        h = h + linear(a, layer + "self_attn.o_proj")
        m = norm(h, layer + "post_attention_layernorm")
        gate = linear(m, layer + "mlp.gate_proj")
        m = gate / (1 + np.exp(-gate)) * linear(m, layer + "mlp.up_proj")
        h = h + linear(m, layer + "mlp.down_proj")
    head = "model.embed_tokens" if fields["tie_word_embeddings"] else "lm_head"
    return norm(h, "model.norm") @ x[f"{head}.weight"].T


def turns(fields, size, length):
    """Return cosines and sines [T, 1, size / 2], the frequencies one by one."""
    scaling = fields.get("rope_scaling") or {"rope_type": "default"}
    base, kind = fields["rope_theta"], scaling["rope_type"]
    factor, longer = scaling.get("factor"), 1.0
    frequencies = []
    for i in range(size // 2):
        f = base ** (-2 * i / size)
        if kind == "linear":
            f /= factor
        elif kind == "llama3":
            whole = scaling["original_max_position_embeddings"]
            low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
            wave = 2 * math.pi / f
            if wave > whole / low:
                f /= factor
            elif wave >= whole / high:
                smooth = (whole / wave - low) / (high - low)
                f = (1 - smooth) * f / factor + smooth * f
        elif kind == "yarn":
            first, last = (
                size
                * math.log(
                    scaling["original_max_position_embeddings"] / (2 * math.pi * beta)
                )
                / (2 * math.log(base))
                for beta in (scaling["beta_fast"], scaling["beta_slow"])
            )
            if scaling.get("truncate", True):
                first, last = math.floor(first), math.ceil(last)
            first, last = max(first, 0), min(last, size - 1)
            share = min(max((i - first) / (last - first or 0.001), 0), 1)
            f = share * f / factor + (1 - share) * f
        frequencies.append(f)
    if kind == "yarn":
        longer = scaling["attention_factor"]
    angles = np.arange(length)[:, None, None] * np.array(frequencies)
    return longer * np.cos(angles), longer * np.sin(angles)
