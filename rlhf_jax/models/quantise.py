"""Quantisation of the blocks' matrices to int8, a quarter of their float32 memory: of
a whole model's, or of one layer after another while a model is loaded.

Every output of a product has its own scale, see `layers.quantise_kernel`; products run
in the model's `dtype` and are scaled afterwards. Quantised models serve inference only
(frozen models, or the copy of a policy that a rollout reads): integers have no
gradient.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.heads import ScoreModel
from rlhf_jax.models.huggingface_tensors import Box, fill
from rlhf_jax.models.layers import quantise_kernel


def quantise(model: ChatGLM | ScoreModel) -> ChatGLM | ScoreModel:
    """Return the model quantised. Embedding, heads and norms stay as they are."""
    if model.config.quantised:
        return model
    config = dataclasses.replace(model.config, quantised=True)

    def build():
        backbone = ChatGLM(config, rngs=nnx.Rngs(0))
        if isinstance(model, ChatGLM):
            return backbone
        return ScoreModel(backbone, rngs=nnx.Rngs(0))

    paths, treedef = jax.tree_util.tree_flatten_with_path(jax.eval_shape(build))
    shapes = {jax.tree_util.keystr(path): leaf for path, leaf in paths}
    leaves = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(model)[0]
    }
    for name, shape in shapes.items():
        if "kernel_scale" not in name:
            continue
        matrix = name.replace("kernel_scale", "kernel")
        summed = _summed(leaves[matrix], shape)
        leaves[matrix], leaves[name] = quantise_kernel(leaves[matrix], summed)
    return jax.tree.unflatten(treedef, [leaves[name] for name in shapes])


def fill_quantised(
    kernel: jax.ShapeDtypeStruct,
    scale: jax.ShapeDtypeStruct,
    read: Callable[[Box], np.ndarray],
    *,
    dtype: str,
    stacked: int,
) -> tuple[jax.Array, jax.Array]:
    """Return stacked matrices in int8 and their scales, as `quantise` does, read layer
    by layer: no more than one layer is alive in `dtype`.

    Args:
        kernel, scale: the shapes [L, ...] of the results, with their shardings.
        read, stacked: as in `huggingface_tensors.fill`.
    """
    shardings, summed = (kernel.sharding, scale.sharding), _summed(kernel, scale)
    of_layer = kernel.sharding
    if isinstance(of_layer, NamedSharding):
        of_layer = NamedSharding(of_layer.mesh, P(None, *of_layer.spec[1:]))

    @functools.partial(jax.jit, donate_argnums=(0, 1), out_shardings=shardings)
    def put(*arrays):
        *wholes, layer, i = arrays
        parts = quantise_kernel(layer, summed)
        return tuple(
            jax.lax.dynamic_update_slice_in_dim(whole, part, i, 0)
            for whole, part in zip(wholes, parts, strict=True)
        )

    kernels = jnp.zeros(kernel.shape, kernel.dtype, device=kernel.sharding)
    scales = jnp.zeros(scale.shape, scale.dtype, device=scale.sharding)
    for i in range(kernel.shape[0]):

        def read_layer(box, i=i):
            return read(((i, i + 1), *box[1:]))

        shape = (1, *kernel.shape[1:])
        layer = fill(shape, dtype, of_layer, read_layer, stacked=stacked)
        kernels, scales = jax.block_until_ready(put(kernels, scales, layer, i))
    return kernels, scales


def _summed(kernel, scale) -> list[int]:
    """Return the axes that a matrix's product sums over, by the matrix's scale."""
    pairs = enumerate(zip(kernel.shape, scale.shape, strict=True))
    return [i for i, (whole, n) in pairs if n == 1 and whole > 1]
