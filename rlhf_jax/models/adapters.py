"""Models with adapters on a base that several models share.

A model's own part is what is trained: its adapters, and the head of a ScoreModel with
its offset. It has the structure of the model, with None in place of the base's arrays.
`split` and `join` take any tree that holds models; they rearrange references, and copy
no array. A model without adapters is its own part, and has no base.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.heads import ScoreModel
from rlhf_jax.models.layers import quantise_kernel
from rlhf_jax.models.lora import LoRA, equations
from rlhf_jax.parallel.layers import is_none, parameter_name
from rlhf_jax.parallel.sharding import create

OWN = re.compile(r"\.lora_[ab]$")
OWN_OF_SCORE_MODEL = re.compile(r"\.lora_[ab]$|^head\.|^offset$")


def is_model(x: Any) -> bool:
    return isinstance(x, ChatGLM | ScoreModel)


def own_part(tree: Any) -> Any:
    """Return the tree with each model's own part in place of the model."""
    return _each_model(tree, lambda model: _with(model, _own_leaves(model)))


def base_parts(tree: Any) -> list[dict[str, Any]]:
    """Return the arrays of the base under each model of the tree, by name; {} for a
    model without adapters."""
    return [_base_leaves(model) for model in _models(tree)]


def join(tree: Any, bases: list[dict[str, Any]]) -> Any:
    """Return the tree with each model's base put back: the inverse of `own_part`, given
    its tree's `base_parts`."""
    rest = iter(bases)
    return _each_model(tree, lambda model: on_base(model, next(rest)))


def once(bases: list[dict[str, Array]]) -> tuple[list[Array], tuple]:
    """Return the different arrays of `base_parts`, each once however many models hold
    it, and the places of all by name, which can be hashed."""
    arrays = {id(x): x for base in bases for x in base.values()}
    number = {key: i for i, key in enumerate(arrays)}
    places = tuple(
        tuple((name, number[id(x)]) for name, x in base.items()) for base in bases
    )
    return list(arrays.values()), places


def spread(arrays: list[Array], places: tuple) -> list[dict[str, Array]]:
    """Return `base_parts` again: the inverse of `once`."""
    return [{name: arrays[i] for name, i in place} for place in places]


def on_base(own: Any, base: dict[str, Any]) -> Any:
    """Return the model of an own part and its base.

    Args:
        base: name -> array, as `named` gives for a ChatGLM; more names than needed are
            ignored.
    """
    leaves = {
        name: base[_in_base(name)] if x is None else x
        for name, x in _leaves(own).items()
    }
    return _with(own, leaves)


def named(model: ChatGLM | ScoreModel) -> dict[str, Any]:
    """Return the arrays of a model that a base has, by their names in a ChatGLM."""
    own = model if isinstance(model, ChatGLM) else model.backbone
    return {_in_base(name): x for name, x in _leaves(own).items() if x is not None}


def adapted(model: ChatGLM | ScoreModel, lora: LoRA, *, key: Array) -> Any:
    """Return the model, which has no adapters, with new ones on it: the model's arrays
    are the base, and a ScoreModel's head is copied."""
    config = dataclasses.replace(model.config, lora=lora)

    def make(head: dict[str, Array]) -> Any:
        backbone = ChatGLM(config, rngs=nnx.Rngs(key))
        if isinstance(model, ChatGLM):
            return own_part(backbone)
        fresh = own_part(ScoreModel(backbone, rngs=nnx.Rngs(key)))
        given = {
            name: x.astype(lora.param_dtype) if name.startswith("head.") else x
            for name, x in head.items()
        }
        return _with(fresh, _leaves(fresh) | given)

    head = {}
    if isinstance(model, ScoreModel):
        head = {k: x for k, x in _leaves(model).items() if OWN_OF_SCORE_MODEL.search(k)}
    return on_base(create(make, head), named(model))


def merged(model: ChatGLM | ScoreModel) -> Any:
    """Return the model without adapters, whose products are added to the matrices, in
    float32. Int8 matrices are rounded to int8 again.

    A function to be compiled: with `parallel.sharding.create`, for instance.
    """
    lora = model.config.lora
    if lora is None:
        return model
    model = jax.tree.map(lambda x: x, model)  # a copy of the modules, not of arrays
    backbone = model if isinstance(model, ChatGLM) else model.backbone
    like = jax.eval_shape(lambda: _without_adapters(model))
    leaves = _leaves(model)
    stacks = {name: getattr(backbone, name) for name in ("dense_blocks", "blocks")}
    linears: list[tuple[str, Any]] = [
        (".".join([name, *map(str, path)]), linear)
        for name, stack in stacks.items()
        if stack is not None
        for path, linear in nnx.iter_modules(stack)
    ]
    for name, linear in linears:
        if not getattr(linear, "lora_scale", 0.0):
            continue
        name = name if backbone is model else f"backbone.{name}"
        with_layers = ",".join(
            f"l{part}" for part in equations(linear.equation)[2].split(",")
        ).replace("->", "->l")
        delta = jnp.einsum(
            with_layers,
            linear.lora_a[...].astype(jnp.float32),
            linear.lora_b[...].astype(jnp.float32),
            precision="highest",
        )
        delta = lora.scale * delta
        kernel = leaves[f"{name}.kernel"]
        if linear.kernel_scale is None:
            whole = kernel.astype(jnp.float32) + delta
            leaves[f"{name}.kernel"] = whole.astype(kernel.dtype)
            continue
        scale = leaves[f"{name}.kernel_scale"]
        whole = kernel.astype(jnp.float32) * scale + delta
        summed = [
            i for i, n in enumerate(scale.shape) if n == 1 and kernel.shape[i] > 1
        ]
        leaves[f"{name}.kernel"], leaves[f"{name}.kernel_scale"] = quantise_kernel(
            whole, summed
        )
    return _with(like, leaves)


def _without_adapters(model: Any) -> ChatGLM | ScoreModel:
    config = dataclasses.replace(model.config, lora=None)
    backbone = ChatGLM(config, rngs=nnx.Rngs(0))
    if isinstance(model, ChatGLM):
        return backbone
    return ScoreModel(backbone, rngs=nnx.Rngs(0))


def _models(tree: Any) -> list:
    return [x for x in jax.tree.leaves(tree, is_leaf=is_model) if is_model(x)]


def _each_model(tree: Any, change: Callable) -> Any:
    return jax.tree.map(
        lambda x: change(x) if is_model(x) else x, tree, is_leaf=is_model
    )


def _own_leaves(model: Any) -> dict:
    return {k: x if _is_own(model, k) else None for k, x in _leaves(model).items()}


def _base_leaves(model: Any) -> dict:
    leaves = _leaves(model).items()
    return {_in_base(k): x for k, x in leaves if not _is_own(model, k)}


def _is_own(model: Any, name: str) -> bool:
    if model.config.lora is None:
        return True
    pattern = OWN_OF_SCORE_MODEL if isinstance(model, ScoreModel) else OWN
    return bool(pattern.search(name))


def _in_base(name: str) -> str:
    return name.removeprefix("backbone.")


def _leaves(model: Any) -> dict:
    """Return the arrays of a model by name, with None where an own part has None."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(model, is_leaf=is_none)
    return {parameter_name(path): x for path, x in leaves}


def _with(model: Any, leaves: dict) -> Any:
    """Return a model of the same structure with other arrays."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: leaves[parameter_name(path)], model, is_leaf=is_none
    )
