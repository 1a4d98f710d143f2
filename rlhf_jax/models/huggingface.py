"""Published checkpoints in and out: folders with config.json and safetensors.

    model = huggingface.load("chatglm3-6b", dtype="bfloat16", param_dtype="bfloat16")
    huggingface.save(model, "chatglm3-6b-ppo")

Nothing of a checkpoint is run or unpickled. Weights go from the file to the device in
pieces of at most `CHUNK_BYTES`, each device's slice by itself, so that a model never
lies in the host's memory.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx
from jax.sharding import Mesh, SingleDeviceSharding
from safetensors.numpy import save_file

from rlhf_jax.models import huggingface_config
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.heads import ScoreModel
from rlhf_jax.models.huggingface_names import (
    IGNORED,
    Piece,
    pieces,
    score_pieces,
    tensor_shapes,
)
from rlhf_jax.parallel.sharding import parameter_sharding

CHUNK_BYTES = 2**26
SHARD_BYTES = 5 * 10**9
_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
}
_INDEX = "model.safetensors.index.json"
_SCORE_HEADS = ("score.weight", "classifier_head.weight")


def load(
    path: str | os.PathLike,
    *,
    dtype: str,
    param_dtype: str,
    mesh: Mesh | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> ChatGLM | ScoreModel:
    """The model of a folder; a `ScoreModel` where it holds a scalar head.

    Args:
        dtype, param_dtype: of the computation and of the parameters.
        mesh: where to put the parameters, by the table of `parallel.sharding`; None:
            the default device.
        progress: wraps the iteration over parameters, for a progress bar.

    Raises:
        ValueError: an unsupported model, or tensors that are missing, unknown or of
            another shape; all of them are listed.
    """
    folder = Path(path)
    tensors = _list_tensors(folder)
    fields = json.loads((folder / "config.json").read_text())
    config, naming = huggingface_config.read(
        fields, dtype=dtype, param_dtype=param_dtype
    )
    is_score = any(name in tensors for name in _SCORE_HEADS)
    if is_score:
        table = score_pieces(config, naming)
    else:
        if config.tied:
            config = dataclasses.replace(
                config, tied=_drop_equal_head(config, naming, tensors)
            )
        table = pieces(config, naming)
    _check_tensors(tensors, tensor_shapes(table, config.num_layers), folder)

    def build():
        if is_score:
            # Scores need no output matrix; the files have none.
            backbone = ChatGLM(dataclasses.replace(config, tied=True), rngs=nnx.Rngs(0))
            return ScoreModel(backbone, rngs=nnx.Rngs(0))
        return ChatGLM(config, rngs=nnx.Rngs(0))

    paths, treedef = jax.tree_util.tree_flatten_with_path(jax.eval_shape(build))
    leaves = []
    for key_path, leaf in progress(paths):
        name = jax.tree_util.keystr(key_path).removesuffix(".value")
        sharding = SingleDeviceSharding(jax.devices()[0])
        if mesh is not None:
            sharding = parameter_sharding(name, leaf.shape, mesh)
        if name in table:

            def read(box, parts=table[name]):
                return _read(parts, box, tensors)

        else:  # the bias and the offset of a head that was saved without
            value = fields.get("score_offset", 0.0) if name == ".offset" else 0.0

            def read(box, value=value):
                return np.full([hi - lo for lo, hi in box], value, np.float32)

        stacked = ".blocks." in name
        leaves.append(_fill(leaf.shape, leaf.dtype, sharding, read, stacked))
    return jax.tree.unflatten(treedef, leaves)


def save(
    model: ChatGLM | ScoreModel,
    path: str | os.PathLike,
    *,
    naming: str | None = None,
    fields: dict | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> None:
    """Write a folder that `load` reads, and transformers where the naming is "native".

    Args:
        naming: "v1", "remote" or "native" (see `huggingface_names`); None takes native
            names where they exist. ChatGLM2 and 3 have them: they are `glm` models.
        fields: what else config.json shall say, such as `eos_token_id`.
    """
    is_score = isinstance(model, ScoreModel)
    config = model.backbone.config if is_score else model.config
    possible = huggingface_config.namings(config)
    naming = possible[0] if naming is None else naming
    if naming not in possible:
        raise ValueError(f"{naming=} cannot hold this model; possible: {possible}.")
    described = huggingface_config.write(config, naming)
    leaves = {
        jax.tree_util.keystr(key_path).removesuffix(".value"): leaf
        for key_path, leaf in jax.tree_util.tree_flatten_with_path(model)[0]
    }
    if is_score:
        table = score_pieces(config, naming)
        shift = np.float32(leaves[".offset"]) - np.asarray(leaves[".head.bias"])
        leaves[".head.bias"] = -shift.astype(np.float32)
        if naming == "native":
            kind = described["architectures"][0].replace("CausalLM", "")
            described["architectures"] = [kind + "SequenceClassification"]
            described["id2label"], described["label2id"] = {"0": "score"}, {"score": 0}
            # transformers' head has no bias. It moves all scores alike.
            described["score_offset"] = float(shift[0])
    else:
        table = pieces(config, naming)
        if config.tied and naming == "v1":  # published with both
            untied = pieces(dataclasses.replace(config, tied=False), naming)
            table[".head.kernel"] = untied[".head.kernel"]
            leaves[".head.kernel"] = leaves[".embedding"].T
    sources = _sources(table, config.num_layers)
    shapes = tensor_shapes(table, config.num_layers)
    store = np.dtype(jnp.dtype(config.param_dtype))
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(described | (fields or {}), indent=2, ensure_ascii=False)
    (folder / "config.json").write_text(text + "\n")

    shards = _plan_shards(shapes, store.itemsize)
    files = ["model.safetensors"]
    if len(shards) > 1:
        count = len(shards)
        files = [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
        total = sum(int(np.prod(s)) for s in shapes.values()) * store.itemsize
        where = {n: f for f, names in zip(files, shards, strict=True) for n in names}
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n")
    names = iter(progress(list(shapes)))
    for file, shard in zip(files, shards, strict=True):
        tensors = {}
        for _ in shard:
            name = next(names)
            tensors[name] = np.empty(shapes[name], store)
            for leaf_name, piece, layer in sources[name]:
                leaf = leaves[leaf_name]
                part = np.asarray(leaf if layer is None else leaf[layer])
                _write(piece, part, tensors[name])
        save_file(tensors, folder / file, metadata={"format": "pt"})


class _Tensor:
    """A tensor in a file, mapped into memory only while it is read."""

    def __init__(self, file: Path, header: dict, start: int):
        if header["dtype"] not in _DTYPES:
            raise ValueError(f"{file} has numbers of type {header['dtype']}.")
        self.file = file
        self.dtype = np.dtype(_DTYPES[header["dtype"]])
        self.shape = tuple(header["shape"])
        self.offset = start + header["data_offsets"][0]

    def map(self) -> np.ndarray:
        return np.memmap(self.file, self.dtype, "r", self.offset, self.shape)


def _list_tensors(folder: Path) -> dict[str, _Tensor]:
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json.")
    files = sorted(folder.glob("*.safetensors"))
    if (folder / _INDEX).is_file():
        where = json.loads((folder / _INDEX).read_text())["weight_map"]
        files = [folder / name for name in sorted(set(where.values()))]
        absent = [file.name for file in files if not file.is_file()]
        if absent:
            raise FileNotFoundError(f"{folder} lacks files of its index: {absent}.")
    if not files:
        if any(folder.glob("*.bin")):
            raise ValueError(
                f"{folder} has weights in *.bin files only. These are pickles, which "
                "can run code, and are not read here. Convert them once, where you "
                "trust them: safetensors.torch.save_file(torch.load(FILE, "
                "weights_only=True), FILE.replace('.bin', '.safetensors')), and the "
                "same for the names in the index."
            )
        raise FileNotFoundError(f"{folder} has no *.safetensors.")
    tensors = {}
    for file in files:
        with open(file, "rb") as f:
            size = int.from_bytes(f.read(8), "little")
            header = json.loads(f.read(size))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            if not IGNORED.fullmatch(name):
                tensors[name] = _Tensor(file, entry, 8 + size)
    if any("prefix_encoder" in name for name in tensors):
        raise ValueError(
            f"{folder} is a P-tuning checkpoint (it has a prefix_encoder)."
        )
    return tensors


def _check_tensors(tensors, shapes, folder):
    problems = [f"missing: {name} {shapes[name]}" for name in shapes.keys() - tensors]
    problems += [f"unknown: {name}" for name in tensors.keys() - shapes]
    for name in shapes.keys() & tensors.keys():
        if tensors[name].shape != shapes[name]:
            found = tensors[name].shape
            problems.append(f"misshapen: {name} {found} instead of {shapes[name]}")
    if problems:
        lines = "\n  ".join(sorted(problems))
        raise ValueError(f"{folder} does not fit its config.json:\n  {lines}")


def _drop_equal_head(config, naming, tensors) -> bool:
    """Whether the head is the embedding; where it is stored again, forget it."""
    untied = pieces(dataclasses.replace(config, tied=False), naming)
    head = untied[".head.kernel"][0].tensor
    embedding = untied[".embedding"][0].tensor
    if head not in tensors:
        return True
    if embedding in tensors:
        first, second = tensors[embedding].map(), tensors[head].map()
        if first.shape != second.shape:
            return False
        rows = max(1, CHUNK_BYTES // max(first[:1].nbytes, 1))
        for i in range(0, len(first), rows):
            if not np.array_equal(first[i : i + rows], second[i : i + rows]):
                return False
    del tensors[head]
    return True


def _fill(shape, dtype, sharding, read, stacked) -> jax.Array:
    """An array whose device slices are read one after another, in chunks."""
    devices_of: dict[tuple, list] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        slices = zip(index, shape, strict=True)
        box = tuple(s.indices(size)[:2] for s, size in slices)
        devices_of.setdefault(box, []).append(device)
    arrays = []
    for box, devices in devices_of.items():
        chunks = list(_split(box, jnp.dtype(dtype).itemsize, stacked))
        if len(chunks) == 1:
            host = read(box).astype(dtype)
            arrays += [jax.device_put(host, device) for device in devices]
            continue
        lengths = [hi - lo for lo, hi in box]
        parts = [jnp.zeros(lengths, dtype, device=device) for device in devices]
        for chunk in chunks:
            host = read(chunk)
            at = tuple(
                lo - start for (lo, _), (start, _) in zip(chunk, box, strict=True)
            )
            for i, device in enumerate(devices):
                # Wait, or copies of the chunks pile up in the queue.
                piece = jax.device_put(host, device)
                parts[i] = jax.block_until_ready(_put(parts[i], piece, at))
        arrays += parts
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


def _split(box, itemsize, stacked):
    """Boxes of at most CHUNK_BYTES that make up `box`: whole layers while they fit."""
    lengths = [hi - lo for lo, hi in box]
    if np.prod(lengths) * itemsize <= CHUNK_BYTES or max(lengths, default=1) == 1:
        yield box
        return
    axis = 0 if stacked and lengths[0] > 1 else int(np.argmax(lengths))
    lo, hi = box[axis]
    middle = (lo + hi) // 2
    for half in ((lo, middle), (middle, hi)):
        yield from _split((*box[:axis], half, *box[axis + 1 :]), itemsize, stacked)


@jax.jit(donate_argnums=0)
def _put(whole, piece, at):
    return jax.lax.dynamic_update_slice(whole, piece.astype(whole.dtype), at)


def _read(parts: list[Piece], box, tensors) -> np.ndarray:
    """A box of a parameter from the files, in the files' dtype."""
    stacked = "{i}" in parts[0].tensor
    layers = range(*box[0]) if stacked else [None]
    letters = dict(zip(parts[0].ours, box[1:] if stacked else box, strict=True))
    first = parts[0].tensor.replace("{i}", str(layers[0]))
    out = np.empty([hi - lo for lo, hi in box], tensors[first].dtype)
    for i, layer in enumerate(layers):
        target = out[i] if stacked else out
        for piece in parts:
            there = _index_ours(piece, letters)
            if there is not None:
                tensor = tensors[piece.tensor.replace("{i}", str(layer))].map()
                target[there] = _in_our_order(piece, letters, tensor)
    return out


def _write(piece: Piece, parameter: np.ndarray, tensor: np.ndarray) -> None:
    """Put the part of a parameter (of one layer) that a piece names into a tensor."""
    sizes = zip(piece.ours, parameter.shape, strict=True)
    letters = {letter: (0, size) for letter, size in sizes}
    target = _in_our_order(piece, letters, tensor)
    target[...] = parameter[_index_ours(piece, letters)]


def _index_ours(piece: Piece, letters) -> tuple | None:
    """Where a box's buffer holds the piece; None where the box has nothing of it."""
    part = dict(piece.part)
    if any(not lo <= part.get(x, lo) < hi for x, (lo, hi) in letters.items()):
        return None
    return tuple(
        part[x] - letters[x][0] if x in part else slice(None) for x in piece.ours
    )


def _in_our_order(piece: Piece, letters, tensor: np.ndarray) -> np.ndarray:
    """The view of a tensor that belongs to a box, axes in the parameter's order."""
    axes = piece.rows + piece.columns
    rows = int(np.prod([size for _, size in piece.rows]))
    view = tensor[piece.start : piece.start + rows]
    view = view.reshape([size for _, size in axes])
    picked, shift = dict(piece.picked), dict(piece.shift)
    index = []
    for x, _ in axes:
        move = shift.get(x, 0)
        index.append(
            picked[x]
            if x in picked
            else slice(letters[x][0] + move, letters[x][1] + move)
        )
    left = [x for x, _ in axes if x not in picked]
    part = dict(piece.part)
    order = [left.index(x) for x in piece.ours if x not in part]
    return view[tuple(index)].transpose(order)


def _sources(table, num_layers):
    """For every tensor, what it is made of: (path, piece, layer)."""
    sources: dict[str, list] = {}
    for name, parts in table.items():
        for piece in parts:
            stacked = "{i}" in piece.tensor
            for layer in range(num_layers) if stacked else [None]:
                tensor = piece.tensor.replace("{i}", str(layer))
                sources.setdefault(tensor, []).append((name, piece, layer))
    return sources


def _plan_shards(shapes, itemsize) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, shape in shapes.items():
        size = int(np.prod(shape)) * itemsize
        if shards[-1] and filled + size > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards
