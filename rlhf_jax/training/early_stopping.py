"""Early stopping: the best model so far, and when to stop."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from rlhf_jax.models.adapters import base_parts, join, own_part


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Best:
    """The model with the highest validation score so far.

    It is saved in checkpoints, so that a resumed run stops where an uninterrupted one
    does. It takes the memory of one more copy of the weights, or of the adapters.
    """

    model: nnx.Module
    score: Float[Array, ""]
    waited: Int[Array, ""]  # evaluations since the best one

    @classmethod
    def start(cls, model: nnx.Module) -> "Best":
        return cls(_copy(model), jnp.float32(-jnp.inf), jnp.int32(0))

    def update(self, model: nnx.Module, score: float) -> "Best":
        """Return the best after another evaluation, with a copy of the model, whose
            buffers
        may be reused."""
        if score > self.score:
            return Best(_copy(model), jnp.float32(score), jnp.int32(0))
        return Best(self.model, self.score, self.waited + 1)

    def is_final(self, patience: int) -> bool:
        """Return True if `patience` evaluations in a row were not better; never with
        0."""
        return 0 < patience <= int(self.waited)


def _copy(model: nnx.Module) -> nnx.Module:
    return join(jax.tree.map(jnp.copy, own_part(model)), base_parts(model))
