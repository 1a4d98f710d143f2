"""Names: where each of our parameters lies in the tensors of a published checkpoint.

Published matrices are [out, in]; ours have one axis for each letter below. A `Piece`
maps a part of a parameter to a part of a tensor, for reading and for writing.

Letters: v vocabulary, d width, f FFN width, n query heads, k key-value heads, h head
dim, c the parts of a joint matrix (keys and values; gate and up; v1's q, k and v), e
experts, x the FFN width of an expert, s that of the shared experts. Latent attention: q
the rank of queries, m the latent width, j that with the rotary key, y dims of a value.

Llama, Mistral, Qwen2, Qwen3 and GLM-4.5 turn dim i of a head with dim i + r / 2, r
being the number of turned dims; ours are neighbours. So rows of their queries and keys,
and the weights of the norms of both, are in another order here: their dim p r / 2 + i
is our dim 2 i + p, p being 0 or 1, and dims from r on stay. GLM-4.7-Flash turns
neighbours, in the last dims of a head; ours are the first.
"""

import dataclasses
import re

from rlhf_jax.models.config import ChatGLMConfig

# Buffers in published files that only the published code reads; no other tensor may be
# ignored.
IGNORED = re.compile(
    r"(transformer|model)\.((encoder\.)?layers\.\d+\.(self_attn|(self_)?attention)\.)?"
    r"rotary(_pos)?_emb\.((original_)?inv_freq|(cos|sin)_cached)"
)


@dataclasses.dataclass(frozen=True)
class Piece:
    """A box of a parameter that is a box of a tensor.

    Attributes:
        ours: the parameter's axes, without the axis of layers, e.g. "dnh".
        tensor: the tensor's name, "{i}" standing for the layer.
        layers: the layers whose tensors the parameter's axis of layers stacks, in
            order; None for a parameter without this axis.
        rows, columns: the letters and sizes that the tensor's two axes fall into.
        start: the tensor's row at which `rows` begin.
        shift: for a letter of both, the number to add to our index to get the
            tensor's index.
        picked: for a letter of the tensor alone, the index that belongs to ours.
        part: for a letter of ours alone, the index that this tensor holds.
        dims: (first, stop, step, there): the piece holds our h first, first + step, ...
            below stop, which are the tensor's h from `there` on; None for all h alike.
    """

    ours: str
    tensor: str
    rows: tuple[tuple[str, int], ...]
    columns: tuple[tuple[str, int], ...] = ()
    layers: range | None = None
    start: int = 0
    shift: tuple[tuple[str, int], ...] = ()
    picked: tuple[tuple[str, int], ...] = ()
    part: tuple[tuple[str, int], ...] = ()
    dims: tuple[int, int, int, int] | None = None


def pieces(config: ChatGLMConfig, naming: str) -> dict[str, list[Piece]]:
    """Return every parameter's path with the pieces that make the parameter up.

    Args:
        naming: "v1", "remote" (ChatGLM2, ChatGLM3, GLM-4) or "native" (transformers'
            `glm`, `glm4`, `glm4_moe`, `glm4_moe_lite`, `llama`, `mistral`, `qwen2` and
            `qwen3`).
    """
    head_dim, turned = config.head_dim, config.rotary_dims
    latents = config.latent_width > 0
    orders: list[dict] = [{}]  # of the dims of a query's or key's head
    if latents:
        rest = head_dim - turned
        orders = [{"dims": (0, turned, 1, rest)}, {"dims": (turned, head_dim, 1, 0)}]
    elif config.family != "glm":
        orders = [{"dims": (p, turned, 2, p * turned // 2)} for p in (0, 1)]
        if turned < head_dim:
            orders.append({"dims": (turned, head_dim, 1, turned)})
    size = _sizes(config)
    stem, head = {
        "v1": ("transformer.layers.{i}.", "lm_head"),
        "remote": ("transformer.encoder.layers.{i}.", "transformer.output_layer"),
        "native": ("model.layers.{i}.", "lm_head"),
    }[naming]
    embedding, final_norm = {
        "v1": ("transformer.word_embeddings", "transformer.final_layernorm"),
        "remote": (
            "transformer.embedding.word_embeddings",
            "transformer.encoder.final_layernorm",
        ),
        "native": ("model.embed_tokens", "model.norm"),
    }[naming]
    table: dict[str, list[Piece]] = {}

    first = config.num_dense_layers
    stacks = {"dense_blocks": range(first)} if first else {}
    stacks["blocks"] = range(first, config.num_layers)

    def add(path, ours, tensor, rows, columns="", *, kinds=stacks, sizes=None, **more):
        """Add a piece, for a path in `blocks` one in each of these kinds of layers;
        `sizes` are those of the tensor that are not the config's."""
        rows, columns = size(rows, sizes), size(columns)
        places = {path: None}
        if path.startswith(".blocks."):
            tail = path.removeprefix(".blocks.")
            places = {f".{kind}.{tail}": stacks[kind] for kind in kinds}
        for place, layers in places.items():
            piece = Piece(ours, tensor, rows, columns, layers, **more)
            table.setdefault(place, []).append(piece)

    def add_turned(path, ours, tensor, rows, columns="", **more):
        for order in orders:
            add(path, ours, tensor, rows, columns, **order, **more)

    def add_norm(path, tensor):
        add(f"{path}.scale", "d", f"{tensor}.weight", "d")
        if config.norm == "layer":
            add(f"{path}.bias", "d", f"{tensor}.bias", "d")

    add(".embedding", "vd", f"{embedding}.weight", "v", "d")
    if not config.tied:
        add(".head.kernel", "dv", f"{head}.weight", "v", "d")
    add_norm(".final_norm", final_norm)
    add_norm(".blocks.attention_norm", stem + "input_layernorm")
    add_norm(".blocks.mlp_norm", stem + "post_attention_layernorm")
    if config.residual == "sandwich":
        add_norm(".blocks.post_attention_norm", stem + "post_self_attn_layernorm")
        add_norm(".blocks.post_mlp_norm", stem + "post_mlp_layernorm")

    # Queries, keys and values: a bias has the rows of its weight and no columns.
    stem_qkv = stem + {"v1": "attention.query_key_value"}.get(
        naming, "self_attention.query_key_value"
    )
    kinds = [("kernel", "weight", "d")]
    if config.qkv_bias or config.linear_bias:
        kinds.append(("bias", "bias", ""))
    for ours, theirs, d in [] if latents else kinds:
        q, kv = f".blocks.attention.query.{ours}", f".blocks.attention.key_value.{ours}"
        if naming == "v1":  # rows hold q, k and v of one head after another
            name, rows = f"{stem_qkv}.{theirs}", "n3h"
            add(q, d + "nh", name, rows, d, picked=(("c", 0),))
            add(kv, d + "ckh", name, "k3h", d, shift=(("c", 1),))
        elif naming == "remote":  # rows hold all queries, then all keys, all values
            name = f"{stem_qkv}.{theirs}"
            after = config.num_heads * config.head_dim
            add(q, d + "nh", name, "nh", d)
            add(kv, d + "ckh", name, "2kh", d, start=after)
        else:
            name = stem + "self_attn.{}_proj." + theirs
            key, value = ({"part": (("c", i),)} for i in (0, 1))
            add_turned(q, d + "nh", name.replace("{}", "q"), "nh", d)
            add_turned(kv, d + "ckh", name.replace("{}", "k"), "kh", d, **key)
            add(kv, d + "ckh", name.replace("{}", "v"), "kh", d, **value)
    if latents:
        _add_latents(config, add, add_turned, stem + "self_attn.")
    if config.qk_norm:
        for ours, theirs in (("query", "q"), ("key", "k")):
            path, name = f".blocks.attention.{ours}_norm.scale", f"{theirs}_norm.weight"
            add_turned(path, "h", f"{stem}self_attn.{name}", "h")

    output = {"v1": "attention.dense", "remote": "self_attention.dense"}
    output = stem + output.get(naming, "self_attn.o_proj")
    up = stem + ("mlp.gate_up_proj" if naming == "native" else "mlp.dense_h_to_4h")
    down = stem + ("mlp.down_proj" if naming == "native" else "mlp.dense_4h_to_h")
    parts = "2" if config.mlp == "swiglu" else "1"
    output_kinds, mlp_kinds = (
        [("kernel", "weight"), ("bias", "bias")][: 1 + (bias or config.linear_bias)]
        for bias in (config.output_bias, config.mlp_bias)
    )
    for ours, theirs in output_kinds:
        heads = "ny" if latents else "nh"
        n, columns = (heads, heads) if ours == "kernel" else ("", "")
        path = f".blocks.attention.output.{ours}"
        add(path, n + "d", f"{output}.{theirs}", "d", columns)

    def add_gated(path, module, f, **more):
        """Add an MLP whose gate and up are two tensors."""
        part = more.pop("part", ())
        e = "e" if part else ""
        for ours, theirs in mlp_kinds:
            d, x = ("d", f) if ours == "kernel" else ("", "")
            for i, name in enumerate(("gate_proj", "up_proj")):
                name, both = f"{module}.{name}.{theirs}", (*part, ("c", i))
                add(f"{path}.up.{ours}", f"{e}{d}c{f}", name, f, d, part=both, **more)
            down, name = f"{path}.down.{ours}", f"{module}.down_proj.{theirs}"
            add(down, f"{e}{x}d", name, "d", x, part=part, **more)

    mlp, module = ".blocks.mlp", stem + "mlp"
    if config.num_experts:
        add_gated(mlp, module, "f", kinds=[k for k in stacks if k != "blocks"])
        routed = {"kinds": ["blocks"]}
        add(f"{mlp}.router.kernel", "de", f"{module}.gate.weight", "e", "d", **routed)
        name = f"{module}.gate.e_score_correction_bias"
        add(f"{mlp}.router.correction", "e", name, "e", **routed)
        for i in range(config.num_experts):
            name, part = f"{module}.experts.{i}", (("e", i),)
            add_gated(f"{mlp}.experts", name, "x", part=part, **routed)
        if config.num_shared_experts:
            add_gated(f"{mlp}.shared", f"{module}.shared_experts", "s", **routed)
    elif config.family != "glm":
        add_gated(mlp, module, "f")
    else:
        for ours, theirs in mlp_kinds:
            d, f = ("d", "f") if ours == "kernel" else ("", "")
            add(f"{mlp}.up.{ours}", d + "cf", f"{up}.{theirs}", parts + "f", d)
            add(f"{mlp}.down.{ours}", f + "d", f"{down}.{theirs}", "d", f)
    return table


def _add_latents(config: ChatGLMConfig, add, add_turned, stem: str) -> None:
    """Add the pieces of latent attention but its output, by the functions of `pieces`.
    Rows of `kv_b_proj` hold unturned key and value of one head after another."""
    path, low = ".blocks.attention.", "d"
    maps = [("latent", "kv_a_proj_with_mqa", "j", "kv_a_layernorm", "latent_norm", "m")]
    if config.query_rank:
        low = "q"
        maps.append(
            ("query_down", "q_a_proj", "q", "q_a_layernorm", "query_latent_norm", "q")
        )
    for ours, theirs, width, norm, our_norm, normed in maps:
        add(f"{path}{ours}.kernel", f"d{width}", f"{stem}{theirs}.weight", width, "d")
        if config.qkv_bias:
            add(f"{path}{ours}.bias", width, f"{stem}{theirs}.bias", width)
        add(f"{path}{our_norm}.scale", normed, f"{stem}{norm}.weight", normed)
    name = stem + ("q_b_proj.weight" if config.query_rank else "q_proj.weight")
    add_turned(f"{path}query.kernel", low + "nh", name, "nh", low)
    unturned = config.head_dim - config.rotary_dims
    joint = {"h": unturned + config.value_dim}
    name = stem + "kv_b_proj.weight"
    for ours, count, there in (
        ("key_up", unturned, 0),
        ("value_up", config.value_dim, unturned),
    ):
        dims = (0, count, 1, there)
        add(f"{path}{ours}.kernel", "mnh", name, "nh", "m", sizes=joint, dims=dims)


def score_pieces(config: ChatGLMConfig, naming: str) -> dict[str, list[Piece]]:
    """Return the same table for a `ScoreModel`, whose backbone has no head.

    The scalar head is `classifier_head`, with a bias, in remote code, and `score`,
    without a bias, in transformers.
    """
    table = pieces(dataclasses.replace(config, tied=True), naming)
    table = {".backbone" + path: parts for path, parts in table.items()}
    width, one = ("d", config.width), ("o", 1)
    name = "score" if naming == "native" else "classifier_head"
    table[".head.kernel"] = [Piece("do", f"{name}.weight", (one,), (width,))]
    if naming != "native":
        table[".head.bias"] = [Piece("o", f"{name}.bias", (one,))]
    return table


def tensor_shapes(table: dict[str, list[Piece]]) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor of a checkpoint."""
    shapes: dict[str, tuple[int, ...]] = {}
    for parts in table.values():
        for piece in parts:
            rows = piece.start + _product(piece.rows)
            shape = (rows, _product(piece.columns)) if piece.columns else (rows,)
            for i in piece.layers or [None]:
                name = piece.tensor.replace("{i}", str(i))
                # A joint matrix ends where the last of its pieces ends.
                shapes[name] = max(shape, shapes.get(name, shape))
    return shapes


def _sizes(config: ChatGLMConfig):
    known = {
        "v": config.vocab_size,
        "d": config.width,
        "f": config.ffn_width,
        "n": config.num_heads,
        "k": config.num_kv_heads,
        "h": config.head_dim,
        "e": config.num_experts,
        "x": config.expert_width,
        "s": config.num_shared_experts * config.expert_width,
        "q": config.query_rank,
        "m": config.latent_width,
        "j": config.latent_width + config.rotary_dims,
        "y": config.value_dim,
    }

    def size(letters: str, other=None) -> tuple[tuple[str, int], ...]:
        """Return letters with their sizes; a digit is an axis c of that size."""
        sizes = known | (other or {})
        return tuple(("c", int(x)) if x.isdigit() else (x, sizes[x]) for x in letters)

    return size


def _product(axes: tuple[tuple[str, int], ...]) -> int:
    out = 1
    for _, size in axes:
        out *= size
    return out
