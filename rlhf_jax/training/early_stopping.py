"""The best model so far, kept while training goes on; and when to stop."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Best:
    """The model with the highest score so far, on data apart from training and test.

    All of it goes into checkpoints, so that a resumed run stops where an uninterrupted
    one does. It costs one more copy of the weights.
    """

    model: nnx.Module
    score: Float[Array, ""]
    waited: Int[Array, ""]  # evaluations since, none of them better

    @classmethod
    def start(cls, model: nnx.Module) -> "Best":
        return cls(_copy(model), jnp.float32(-jnp.inf), jnp.int32(0))

    def update(self, model: nnx.Module, score: float) -> "Best":
        """After another evaluation. The model is copied: its buffers may be reused."""
        if score > self.score:
            return Best(_copy(model), jnp.float32(score), jnp.int32(0))
        return Best(self.model, self.score, self.waited + 1)

    def is_final(self, patience: int) -> bool:
        """Whether `patience` evaluations in a row were no better; 0 waits for ever."""
        return 0 < patience <= int(self.waited)


def _copy(model: nnx.Module) -> nnx.Module:
    return jax.tree.map(jnp.copy, model)
