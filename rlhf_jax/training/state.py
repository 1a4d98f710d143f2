"""What a training run carries from step to step, and one step of it."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Int

from rlhf_jax.training.metrics import Mean


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """A model with its optimizer. `step` counts updates tried, `skipped` those that
    were not applied because a gradient was not finite, in a row."""

    step: Int[Array, ""]
    skipped: Int[Array, ""]
    model: nnx.Module
    opt_state: optax.OptState

    @classmethod
    def create(cls, model, optimizer: optax.GradientTransformation) -> "TrainState":
        return cls(jnp.int32(0), jnp.int32(0), model, optimizer.init(model))


def apply_gradients(
    state: TrainState, gradients, optimizer: optax.GradientTransformation
) -> tuple[TrainState, dict]:
    """One optimizer update. A gradient that is not finite changes nothing but counts.

    Returns the new state and the metrics `optim/grad_norm` (before clipping) and
    `optim/skipped` (non-finite updates in a row so far).
    """
    norm = optax.global_norm(gradients)
    finite = jnp.isfinite(norm)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.model)
    model = optax.apply_updates(state.model, updates)

    def keep_old(new, old):
        return jnp.where(finite, new, old)

    skipped = jnp.where(finite, 0, state.skipped + 1)
    new = TrainState(
        step=state.step + 1,
        skipped=skipped,
        model=jax.tree.map(keep_old, model, state.model),
        opt_state=jax.tree.map(keep_old, opt_state, state.opt_state),
    )
    return new, {"optim/grad_norm": Mean.of(norm), "optim/skipped": skipped}


def to_items(state: TrainState, name: str = "model") -> dict:
    """A state as checkpoint items: the model apart, so that it loads alone."""
    rest = (state.step, state.skipped, state.opt_state)
    return {name: state.model, f"{name}_optimizer": rest}


def from_items(items: dict, name: str = "model") -> TrainState:
    """The inverse of `to_items`."""
    step, skipped, opt_state = items[f"{name}_optimizer"]
    return TrainState(step, skipped, items[name], opt_state)
