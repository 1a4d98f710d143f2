"""Adapters in the layout of the library PEFT: adapter_config.json and
adapter_model.safetensors (https://huggingface.co/docs/peft/developer_guides/checkpoint).

A matrix of a published model can be several maps here, each with an A of its own: gate
and up in GLM's `gate_up_proj`; queries, keys and values in ChatGLM's `query_key_value`.
PEFT has one A for the whole matrix. To write, the n A's are put below each other and
the B's beside each other in blocks, with rank n r:

    [B1  0] [A1]
    [ 0 B2] [A2]

To read, every map gets its rows of B and all of A, or its own block where B has blocks.
Both are exact. Where ranks or scales of an adapter differ between matrices, the largest
rank is taken, with zeros in the others, and B holds what remains of the scales.
"""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from rlhf_jax.files import read_json, write_json
from rlhf_jax.models.adapters import own_part
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.config import ChatGLMConfig
from rlhf_jax.models.huggingface_config import namings
from rlhf_jax.models.huggingface_names import Piece, pieces, tensor_shapes
from rlhf_jax.models.huggingface_tensors import (
    Tensor,
    metadata_of,
    read_piece,
    tensors_of,
    write_piece,
)
from rlhf_jax.models.inputs import check_finite
from rlhf_jax.models.layers import Linear
from rlhf_jax.models.lora import LoRA, equations
from rlhf_jax.models.peft_config import Settings, read_settings
from rlhf_jax.parallel.sharding import shapes_of

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_ALL = LoRA(rank=1, alpha=1.0, maps="")


@dataclasses.dataclass(frozen=True)
class _Map:
    """A map of ours in one layer, or one of the maps that are one product here.

    Attributes:
        name: as in the model, "blocks.attention.key_value".
        place: the number of the layer among those of its stack.
        c: the number of the map in the product; None if the product is one map.
        a, b: the letters of A and B, with c (`models.lora.equations`).
        pieces: where the map lies in the published matrix, without c.
    """

    name: str
    place: int
    c: int | None
    a: str
    b: str
    pieces: list[Piece] = dataclasses.field(default_factory=list)

    def of(self, leaves: dict[str, np.ndarray], which: str, rank: int) -> np.ndarray:
        """Return the view of this map's A or B of the first `rank` ranks."""
        at = {"c": self.c, "r": slice(rank)}
        index = (at.get(x, slice(None)) for x in getattr(self, which))
        return leaves[f"{self.name}.lora_{which}"][self.place][tuple(index)]

    def pieces_of(self, which: str, rank: int) -> list[Piece]:
        """Return where A or B lies in the published adapter's."""
        ours = getattr(self, which).replace("c", "")
        if which == "b":
            r = (("r", rank),)
            return [
                dataclasses.replace(piece, ours=ours, columns=r)
                for piece in self.pieces
            ]
        first = self.pieces[0]
        return [Piece(ours, first.tensor, (("r", rank),), first.columns)]


def is_adapter(folder: Path) -> bool:
    """Return True if a folder has PEFT's layout and no model besides."""
    return (folder / CONFIG).is_file() and not any(folder.glob("model*.safetensors"))


def base_of(folder: Path) -> tuple[str, str]:
    """Return the base that an adapter names, and the base's fingerprint, which is ""
    unless `write` recorded it.

    Raises:
        FileNotFoundError, ValueError: see `read`.
    """
    file = _weights_file(folder)
    name = read_json(folder / CONFIG).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ValueError(f"{folder / CONFIG} names no base_model_name_or_path.")
    return name, metadata_of(file).get("base_fingerprint", "")


def read(folder: Path, config: ChatGLMConfig) -> tuple[LoRA, dict[str, np.ndarray]]:
    """Read an adapter for a base.

    Args:
        config: that of the base.

    Returns:
        The adapter's settings, and its arrays by their names in the model, in float32.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a setting that is not computed here, or tensors that are missing,
            unknown, or of another shape than the base wants.
    """
    if config.lora is not None:
        raise ValueError(
            f"The base of {folder} has adapters itself: merge them into a model first, "
            "with launch/convert.py."
        )
    tensors = tensors_of(_weights_file(folder))
    path = folder / CONFIG
    try:
        settings = read_settings(read_json(path))
        modules, shapes = _targeted(settings, config, tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    _check(folder, tensors, settings, modules, shapes)
    values = {name: np.array(x.map(), np.float32) for name, x in tensors.items()}

    blocks = {}
    for module, maps in modules.items():
        rank, b = settings.rank_of(module), values[f"{_PREFIX}{module}.lora_B.weight"]
        blocks[module] = _has_blocks(b, maps, rank)
    used = {
        module: settings.rank_of(module) // (len(maps) if blocks[module] else 1)
        for module, maps in modules.items()
    }
    rank, scale = max(used.values()), settings.scale_of(next(iter(modules)))
    alpha = scale * (math.sqrt(rank) if settings.rslora else rank)
    names = {x.name.split(".", 1)[1] for maps in modules.values() for x in maps}
    existing = {name.split(".", 1)[1] for name in _equations(config)}
    try:
        lora = LoRA(
            rank=rank,
            alpha=float(f"{alpha:.12g}"),
            maps="" if names == existing else "|".join(sorted(names)),
            rslora=settings.rslora,
        )
        like = _shapes(dataclasses.replace(config, lora=lora))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    leaves = {name: np.zeros(x.shape, np.float32) for name, x in like.items()}
    for module, maps in modules.items():
        factor = np.float32(settings.scale_of(module) / lora.scale)
        for i, own in enumerate(maps):
            start = i * used[module] if blocks[module] else 0
            columns = slice(start, start + used[module])
            a = values[f"{_PREFIX}{module}.lora_A.weight"][columns]
            b = values[f"{_PREFIX}{module}.lora_B.weight"][:, columns]
            for which, tensor in (("a", a), ("b", factor * b)):
                target = own.of(leaves, which, used[module])
                for piece in own.pieces_of(which, used[module]):
                    read_piece(piece, tensor, target)
    return lora, leaves


def load(folder: Path, config: ChatGLMConfig, *, param_dtype: str) -> ChatGLM:
    """Load an adapter as the own part of a model (`models.adapters`).

    Args:
        config: that of the base.
        param_dtype: the dtype in which the adapter is stored.

    Raises:
        FileNotFoundError, ValueError: see `read`.
    """
    lora, leaves = read(folder, config)
    lora = dataclasses.replace(lora, param_dtype=param_dtype)
    config = dataclasses.replace(config, lora=lora)

    def put(path: tuple, like: jax.ShapeDtypeStruct) -> jax.Array:
        array = leaves[_name(path)].astype(like.dtype)
        return jax.make_array_from_callback(
            array.shape, like.sharding, array.__getitem__
        )

    like = shapes_of(lambda: own_part(ChatGLM(config, rngs=nnx.Rngs(0))))
    own = jax.tree_util.tree_map_with_path(put, like)
    check_finite(own, str(folder))
    return own


def write(
    own: ChatGLM, folder: Path, *, naming: str, base: str, fingerprint: str
) -> None:
    """Write the adapters of a model, or of its own part, as a folder that PEFT reads.

    Args:
        naming: that of the base's tensors, see `huggingface_names`.
        base: the base's folder or name, as PEFT is to load it.
        fingerprint: the base's fingerprint, by which `base_of` knows it again.

    Raises:
        ValueError: adapters of the MLPs of a mixture of experts.
    """
    config, lora = own.config, own.config.lora
    assert lora is not None
    leaves = {
        _name(path): np.asarray(x)
        for path, x in jax.tree_util.tree_leaves_with_path(own)
    }
    if config.num_experts and any(".mlp." in x for x in leaves if "lora_" in x):
        raise ValueError(
            "PEFT takes adapters of an MLP in a mixture of experts for those of the "
            "routed experts: leave out --naming=peft, which merges them, or train "
            "lora.maps=attention."
        )
    modules = {
        module: [x for x in maps if f"{x.name}.lora_a" in leaves]
        for module, maps in _modules(config, naming).items()
    }
    modules = {module: maps for module, maps in modules.items() if maps}
    shapes = tensor_shapes(pieces(config, naming))
    store, tensors, ranks, alphas = np.dtype(jnp.dtype(lora.param_dtype)), {}, {}, {}
    for module, maps in modules.items():
        n, r = len(maps), lora.rank
        rows, columns = shapes[f"{module}.weight"]
        a, b = np.zeros((n * r, columns), store), np.zeros((rows, n * r), store)
        for i, one in enumerate(maps):
            block = slice(i * r, (i + 1) * r)
            for which, tensor in (("a", a[block]), ("b", b[:, block])):
                for piece in one.pieces_of(which, r):
                    write_piece(piece, one.of(leaves, which, r), tensor)
        tensors[f"{_PREFIX}{module}.lora_A.weight"] = a
        tensors[f"{_PREFIX}{module}.lora_B.weight"] = b
        if n > 1:
            kind = _kind(module)
            ranks[kind] = n * r
            alphas[kind] = lora.alpha * (math.sqrt(n) if lora.rslora else n)
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt", "base_fingerprint": fingerprint}
    path = folder / WEIGHTS
    path.touch()
    mode = path.stat().st_mode  # save_file alone lets nobody else read its file
    save_file(tensors, path, metadata=metadata)
    path.chmod(mode)
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "use_rslora": lora.rslora,
        "lora_dropout": 0.0,
        "target_modules": sorted({_kind(module) for module in modules}),
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "bias": "none",
        "modules_to_save": None,
    }
    write_json(folder / CONFIG, fields)


def _weights_file(folder: Path) -> Path:
    for name in (CONFIG, WEIGHTS):
        if (folder / name).is_file():
            continue
        if any(folder.glob("adapter_model.bin")):
            raise ValueError(
                f"{folder} has its weights in adapter_model.bin alone, a pickle, which "
                "can run code, and is not read here: save it with PEFT again, as "
                "safetensors."
            )
        raise FileNotFoundError(f"{folder} has no {name}.")
    return folder / WEIGHTS


def _targeted(
    settings: Settings, config: ChatGLMConfig, tensors: dict[str, Tensor]
) -> tuple[dict[str, list[_Map]], dict[str, tuple[int, ...]]]:
    """Return the modules that an adapter targets, with our maps, and the shapes of all
    tensors of the base, in that naming of the base which the adapter has."""
    every = {naming: _modules(config, naming) for naming in namings(config)}
    starts = {name.removeprefix(_PREFIX).split(".lora_")[0] for name in tensors}
    matching = [naming for naming, modules in every.items() if starts & modules.keys()]
    naming = [*matching, *every][0]
    modules = {x: every[naming][x] for x in settings.chosen(every[naming])}
    return modules, tensor_shapes(pieces(config, naming))


def _check(
    folder: Path,
    tensors: dict[str, Tensor],
    settings: Settings,
    modules: dict[str, list[_Map]],
    shapes: dict[str, tuple[int, ...]],
) -> None:
    """Refuse tensors other than those of the modules, in one line."""
    wanted = {}
    for module in modules:
        rank, (rows, columns) = settings.rank_of(module), shapes[f"{module}.weight"]
        wanted[f"{_PREFIX}{module}.lora_A.weight"] = (rank, columns)
        wanted[f"{_PREFIX}{module}.lora_B.weight"] = (rows, rank)
    problems = [f"unknown: {name}" for name in sorted(tensors.keys() - wanted)]
    for name, shape in wanted.items():
        if name not in tensors:
            problems.append(f"missing: {name} {shape}")
        elif tensors[name].shape != shape:
            problems.append(f"{name} is {tensors[name].shape}, not {shape}")
    if problems:
        more = f"; and {len(problems) - 2} more" if len(problems) > 2 else ""
        raise ValueError(
            f"{folder / WEIGHTS} does not fit its {CONFIG} and the base: "
            f"{'; '.join(problems[:2])}{more}."
        )


def _has_blocks(b: np.ndarray, maps: list[_Map], rank: int) -> bool:
    """Return True if B has a block of its own for every map, and zeros besides."""
    n = len(maps)
    if n == 1 or rank % n:
        return False
    for i, one in enumerate(maps):
        rows = np.zeros(b.shape[0], bool)
        for piece in one.pieces:
            letters = "".join(x for x in piece.ours if x in dict(piece.rows))
            sizes = dict(piece.rows)
            marks = np.ones([sizes[x] for x in letters], bool)
            row = dataclasses.replace(piece, ours=letters, columns=())
            write_piece(row, marks, rows)
        block = np.zeros(rank, bool)
        block[i * (rank // n) : (i + 1) * (rank // n)] = True
        if b[rows][:, ~block].any() or not b[rows][:, block].any():
            return False
    return True


def _modules(config: ChatGLMConfig, naming: str) -> dict[str, list[_Map]]:
    """Return every matrix of a published model that can have an adapter, by name, with
    the maps of ours in it in a fixed order."""
    modules: dict[str, dict[tuple, _Map]] = {}
    table = pieces(config, naming)
    for name, (equation, count) in _equations(config).items():
        low, kernel = equations(equation)[2].split("->")
        for piece in table[f".{name}.kernel"]:
            a, b = low.translate(str.maketrans(kernel, piece.ours)).split(",")
            for c, without_c in _by_map(piece, count):
                for place, layer in enumerate(piece.layers or ()):
                    module = piece.tensor.replace("{i}", str(layer))
                    maps = modules.setdefault(module.removesuffix(".weight"), {})
                    own = maps.setdefault((name, place, c), _Map(name, place, c, a, b))
                    own.pieces.append(without_c)
    return {module: list(maps.values()) for module, maps in modules.items()}


def _by_map(piece: Piece, count: int) -> Iterator[tuple[int | None, Piece]]:
    """Yield the number of each of the `count` maps of a product that a piece holds, and
    the map's piece, without the letter c of ours."""
    if "c" not in piece.ours:
        yield None, piece
        return
    part, ours = dict(piece.part), piece.ours.replace("c", "")
    if "c" in part:
        yield part["c"], dataclasses.replace(piece, ours=ours, part=())
        return
    shift = dict(piece.shift).get("c", 0)
    for c in range(count):
        picked = (("c", c + shift),)
        yield c, dataclasses.replace(piece, ours=ours, picked=picked, shift=())


def _equations(config: ChatGLMConfig) -> dict[str, tuple[str, int]]:
    """Return the einsum of every map that can have an adapter, by its name in the
    model, and the number of maps that are one product."""
    config = dataclasses.replace(config, lora=_ALL)
    model = jax.eval_shape(lambda: ChatGLM(config, rngs=nnx.Rngs(0)))
    maps = {}
    for stack in ("dense_blocks", "blocks"):
        blocks = getattr(model, stack)
        for path, linear in [] if blocks is None else nnx.iter_modules(blocks):
            if not isinstance(linear, Linear):
                continue
            letters = linear.equation.replace("->", ",").split(",")[1]
            count = linear.kernel.shape[1 + letters.index("c")] if "c" in letters else 1
            maps[".".join([stack, *map(str, path)])] = (linear.equation, count)
    return maps


def _shapes(config: ChatGLMConfig) -> dict[str, jax.ShapeDtypeStruct]:
    like = jax.eval_shape(lambda: own_part(ChatGLM(config, rngs=nnx.Rngs(0))))
    return {_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(like)}


def _kind(module: str) -> str:
    """Return what a matrix is called in every layer: "q_proj"."""
    return module.rpartition(".")[2]


def _name(path: tuple) -> str:
    name = jax.tree_util.keystr(path, simple=True, separator=".")
    return name.removesuffix(".value")
