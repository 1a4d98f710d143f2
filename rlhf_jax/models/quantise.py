"""Quantisation of the blocks' matrices to int8, a quarter of their float32 memory.

Every output of a product has its own scale, see `layers.quantise_kernel`; products run
in the model's `dtype` and are scaled afterwards. Quantised models serve inference only
(frozen models, or the copy of a policy that a rollout reads): integers have no
gradient.
"""

import dataclasses

import jax
from flax import nnx

from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.heads import ScoreModel
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
        whole = leaves[matrix].shape
        summed = [i for i, n in enumerate(shape.shape) if n == 1 and whole[i] > 1]
        leaves[matrix], leaves[name] = quantise_kernel(leaves[matrix], summed)
    return jax.tree.unflatten(treedef, [leaves[name] for name in shapes])
