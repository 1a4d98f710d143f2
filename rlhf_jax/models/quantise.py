"""Models in a quarter of their memory: the blocks' matrices as 8-bit integers.

Every output of a product has its own scale, see `layers.quantise_kernel`; products run
in the model's `dtype` and are scaled afterwards. For models that only answer,
frozen ones or the copy of a policy that a rollout reads: integers have no gradient.
"""

import dataclasses

import jax
from flax import nnx

from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.heads import ScoreModel
from rlhf_jax.models.layers import quantise_kernel


def quantise(model: ChatGLM | ScoreModel) -> ChatGLM | ScoreModel:
    """The same model, quantised. Embedding, heads and norms stay as they are."""
    config = dataclasses.replace(model.config, quantised=True)

    def build():
        backbone = ChatGLM(config, rngs=nnx.Rngs(0))
        if isinstance(model, ChatGLM):
            return backbone
        return ScoreModel(backbone, rngs=nnx.Rngs(0))

    paths, treedef = jax.tree_util.tree_flatten_with_path(jax.eval_shape(build))
    shapes = {jax.tree_util.keystr(path): leaf for path, leaf in paths}
    found = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(model)[0]
    }
    for name, shape in shapes.items():
        if "kernel_scale" not in name:
            continue
        matrix = name.replace("kernel_scale", "kernel")
        whole = found[matrix].shape
        summed = [i for i, n in enumerate(shape.shape) if n == 1 and whole[i] > 1]
        found[matrix], found[name] = quantise_kernel(found[matrix], summed)
    return jax.tree.unflatten(treedef, [found[name] for name in shapes])
