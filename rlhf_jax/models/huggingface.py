"""Reading and writing of published checkpoints: config.json and safetensors.

    model = huggingface.load("chatglm3-6b", dtype="bfloat16", param_dtype="bfloat16")
    huggingface.save(model, "chatglm3-6b-ppo")

No code of a checkpoint is run, and nothing is unpickled.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx
from jax.sharding import Mesh, SingleDeviceSharding
from safetensors.numpy import save_file

from rlhf_jax.files import read_json, write_json
from rlhf_jax.models import huggingface_config
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.config import ChatGLMConfig
from rlhf_jax.models.heads import ScoreModel
from rlhf_jax.models.huggingface_names import (
    Piece,
    pieces,
    score_pieces,
    tensor_shapes,
)
from rlhf_jax.models.huggingface_tensors import (
    CHUNK_BYTES,
    INDEX,
    SINGLE,
    Tensor,
    fill,
    list_tensors,
    read_box,
    write_piece,
)
from rlhf_jax.models.inputs import check_finite
from rlhf_jax.models.quantise import fill_quantised
from rlhf_jax.parallel.sharding import parameter_sharding

SHARD_BYTES = 5 * 10**9  # largest size of a written file, unless one tensor is larger
_SCORE_HEADS = ("score.weight", "classifier_head.weight")


class Weight(NamedTuple):
    """A tensor of another file format, read from there when `read` is called."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]  # float32


def load(
    path: str | os.PathLike,
    *,
    dtype: str,
    param_dtype: str,
    mesh: Mesh | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
    **overrides,
) -> ChatGLM | ScoreModel:
    """Load the model of a folder, a `ScoreModel` where the folder has a scalar head.

    Args:
        dtype, param_dtype: the dtypes of the computation and of the parameters.
            `quantised=True` among the overrides quantises matrices as they are read.
        mesh: the devices to shard the parameters over, by the table of
            `parallel.sharding`; None puts all on the default device.
        progress: a wrapper of the iteration over parameters, for a progress bar.
        overrides: fields of the config that the folder does not set, such as remat.

    Raises:
        ValueError: an unsupported model, or tensors that are missing, unknown, of
            another shape (all of them are listed) or not finite.
    """
    how = {"dtype": dtype, "param_dtype": param_dtype} | overrides
    plan = _plan(Path(path), **how)
    config, tensors, table, is_score = plan.config, plan.tensors, plan.table, plan.score

    def build():
        model = ChatGLM(config, rngs=nnx.Rngs(0))
        return ScoreModel(model, rngs=nnx.Rngs(0)) if is_score else model

    paths, treedef = jax.tree_util.tree_flatten_with_path(jax.eval_shape(build))
    shapes = {}
    for key_path, leaf in paths:
        name = jax.tree_util.keystr(key_path).removesuffix(".value")
        sharding = SingleDeviceSharding(jax.devices()[0])
        if mesh is not None:
            sharding = parameter_sharding(name, leaf.shape, mesh)
        shapes[name] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    leaves: dict[str, jax.Array] = {}
    for name, leaf in progress(shapes.items()):
        if name in leaves:  # a scale, beside its matrix
            continue
        if name in table:

            def read(box, parts=table[name]):
                return read_box(parts, box, tensors)

        else:  # the bias and the offset of a head that was saved without them
            value = plan.offset if name == ".offset" else 0.0

            def read(box, value=value):
                return np.full([hi - lo for lo, hi in box], value, np.float32)

        stacked = ("blocks." in name) + (".experts." in name)
        scale = f"{name}_scale"
        if scale in shapes:
            leaves[name], leaves[scale] = fill_quantised(
                leaf, shapes[scale], read, dtype=param_dtype, stacked=stacked
            )
            continue
        leaves[name] = fill(
            leaf.shape, leaf.dtype, leaf.sharding, read, stacked=stacked
        )
    model = jax.tree.unflatten(treedef, [leaves[name] for name in shapes])
    check_finite(model, str(path))
    return model


def kind_and_config(path: str | os.PathLike) -> tuple[str, ChatGLMConfig]:
    """Return "ChatGLM" or "ScoreModel", and the config, of a folder that `load` can
    read. No weights are read. Raises the errors of `load`."""
    plan = _plan(Path(path), dtype="float32", param_dtype="float32")
    return ("ScoreModel" if plan.score else "ChatGLM"), plan.config


def naming_of(path: str | os.PathLike) -> str:
    """Return the naming of a folder's tensors (see `huggingface_names`)."""
    fields = read_json(Path(path) / "config.json")
    return huggingface_config.read(fields, dtype="float32", param_dtype="float32")[1]


def save(
    model: ChatGLM | ScoreModel,
    path: str | os.PathLike,
    *,
    naming: str | None = None,
    fields: dict | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> None:
    """Write a folder that `load` reads; transformers reads it if naming is "native".

    Args:
        naming: "v1", "remote" or "native" (see `huggingface_names`); None means native
            names where they exist. ChatGLM2 and 3 have native names, as `glm` models.
        fields: further fields of config.json, such as `eos_token_id`.
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
            # transformers' head has no bias, which would shift all scores alike.
            described["score_offset"] = float(shift[0])
    else:
        table = pieces(config, naming)
        if config.tied and naming == "v1":  # published files hold both matrices
            untied = pieces(dataclasses.replace(config, tied=False), naming)
            table[".head.kernel"] = untied[".head.kernel"]
            leaves[".head.kernel"] = leaves[".embedding"].T
    sources, shapes = _sources(table), tensor_shapes(table)
    store = np.dtype(jnp.dtype(config.param_dtype))

    def tensor(name):
        # A router stays in float32, as transformers keep it.
        out = np.empty(shapes[name], np.float32 if ".mlp.gate." in name else store)
        for leaf_name, piece, layer in sources[name]:
            leaf, expert = leaves[leaf_name], dict(piece.part).get("e")
            if layer is not None:  # a dynamic index: one program for all layers
                leaf = jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False)
            if expert is not None:
                leaf = jax.lax.dynamic_slice_in_dim(leaf, expert, 1)
            write_piece(piece, np.asarray(leaf), out, expert=expert or 0)
        return out

    _write(Path(path), described | (fields or {}), shapes, store, tensor, progress)


def write(
    path: str | os.PathLike,
    fields: dict,
    weights: dict[str, Weight],
    *,
    param_dtype: str,
    progress: Callable[[Iterable], Iterable] = iter,
) -> None:
    """Write a folder that `load` reads, from the tensors of another file format.

    Args:
        fields: the fields of config.json.
        weights: the tensors by name.
        param_dtype: the dtype in which the tensors are stored.

    Raises:
        ValueError: the model is unsupported, or the tensors do not fit the fields (all
            that are missing, unknown or misshapen are listed).
    """
    config, naming = huggingface_config.read(
        fields, dtype="float32", param_dtype=param_dtype
    )
    shapes = tensor_shapes(pieces(config, naming))
    _check_tensors(weights, shapes, "The file")
    store = np.dtype(jnp.dtype(param_dtype))

    def tensor(name):
        with np.errstate(over="ignore"):  # `check_finite` reports an overflow
            return weights[name].read().astype(store)

    fields = fields | {"torch_dtype": param_dtype}
    _write(Path(path), fields, shapes, store, tensor, progress)


def _write(folder, fields, shapes, store, tensor, progress):
    """Write config.json, and the result of `tensor(name)` for each name of `shapes`."""
    folder.mkdir(parents=True, exist_ok=True)
    # A model that the folder held before is deleted first; config.json is written last,
    # and marks the new model as complete.
    for name in ("config.json", INDEX, SINGLE, "model-*-of-*.safetensors"):
        for old in folder.glob(name):
            old.unlink()

    shards = _plan_shards(shapes, store.itemsize)
    files = [SINGLE]
    if len(shards) > 1:
        count = len(shards)
        files = [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
        total = sum(int(np.prod(s)) for s in shapes.values()) * store.itemsize
        where = {n: f for f, names in zip(files, shards, strict=True) for n in names}
        index = {"metadata": {"total_size": total}, "weight_map": where}
        write_json(folder / INDEX, index)
    names = iter(progress(list(shapes)))
    for file, shard in zip(files, shards, strict=True):
        tensors = {name: tensor(name) for name in (next(names) for _ in shard)}
        path = folder / file
        path.touch()
        mode = path.stat().st_mode  # save_file alone lets nobody else read its file
        save_file(tensors, path, metadata={"format": "pt"})
        path.chmod(mode)
    next(names, None)  # exhausts the iterator, so that a progress bar reaches its end
    write_json(folder / "config.json", fields)


class _Plan(NamedTuple):
    """The contents of a folder and their places; `score` is True for a `ScoreModel`."""

    config: ChatGLMConfig
    tensors: dict[str, Tensor]
    table: dict[str, list[Piece]]
    score: bool
    offset: float


def _plan(folder: Path, *, dtype, param_dtype, **overrides) -> _Plan:
    tensors = list_tensors(folder)
    fields = read_json(folder / "config.json")
    try:
        config, naming = huggingface_config.read(
            fields, dtype=dtype, param_dtype=param_dtype
        )
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    config = dataclasses.replace(config, **overrides)
    if config.num_layers > len(tensors):
        raise ValueError(
            f"{folder} does not fit its config.json: {config.num_layers} layers, and "
            f"only {len(tensors)} tensors."
        )
    if config.num_experts:
        _drop_prediction_layers(tensors, config.num_layers, fields, folder)
    is_score = any(name in tensors for name in _SCORE_HEADS)
    if is_score:
        table = score_pieces(config, naming)
    else:
        if config.tied:
            config = dataclasses.replace(
                config, tied=_drop_equal_head(config, naming, tensors)
            )
        table = pieces(config, naming)
    _check_tensors(tensors, tensor_shapes(table), folder)
    offset = fields.get("score_offset", 0.0)
    if not isinstance(offset, int | float) or not math.isfinite(offset):
        raise ValueError(
            f"{folder}/config.json: score_offset={offset!r} is not a number."
        )
    return _Plan(config, tensors, table, is_score, float(offset))


def _drop_prediction_layers(tensors, num_layers, fields, folder):
    """Drop the layers after the last one, which predict several tokens at once (MTP),
    in a draft of an answer; nothing here uses them."""
    count = max(fields.get("num_nextn_predict_layers") or 0, 1)
    after = tuple(f"model.layers.{num_layers + i}." for i in range(count))
    extra = [name for name in tensors if name.startswith(after)]
    for name in extra:
        del tensors[name]
    if extra:
        logging.info(
            "%s: %d tensors of %s, which predict several tokens at once (MTP), are not "
            "read.",
            folder,
            len(extra),
            " and ".join(sorted({".".join(name.split(".")[:3]) for name in extra})),
        )


def _check_tensors(tensors, shapes, folder):
    problems = [f"missing: {name} {shapes[name]}" for name in shapes.keys() - tensors]
    # transformers writes a shared expert of width 0 where a model has none.
    unknown = [x for x in tensors.keys() - shapes if 0 not in tensors[x].shape]
    problems += [f"unknown: {name}" for name in unknown]
    for name in shapes.keys() & tensors.keys():
        if tensors[name].shape != shapes[name]:
            shape = tensors[name].shape
            problems.append(f"misshapen: {name} {shape} instead of {shapes[name]}")
    if problems:
        lines = "\n  ".join(sorted(problems))
        raise ValueError(f"{folder} does not fit its config.json:\n  {lines}")


def _drop_equal_head(config, naming, tensors) -> bool:
    """Return True if the head equals the embedding, and drop the head's tensor then."""
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


def _sources(table):
    """Return for every tensor the parts that make it up: (path, piece, layer)."""
    sources: dict[str, list] = {}
    for name, parts in table.items():
        for piece in parts:
            for place, layer in enumerate(piece.layers or [None]):
                tensor = piece.tensor.replace("{i}", str(layer))
                place = None if layer is None else place
                sources.setdefault(tensor, []).append((name, piece, place))
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
