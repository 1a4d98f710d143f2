"""The state of a training run, and one optimizer step."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Int

from rlhf_jax.models.adapters import base_parts, join, once, own_part, spread
from rlhf_jax.models.experts import recorded_loads
from rlhf_jax.parallel.fused_update import fused_update, sum_of_squares
from rlhf_jax.parallel.layers import Trained, trained_part, updated, with_trained
from rlhf_jax.parallel.pipelining import pipe_size
from rlhf_jax.parallel.sharding import constrain_parameters, create, shapes_of
from rlhf_jax.training.accumulate import value_and_grad
from rlhf_jax.training.metrics import Mean, NonFiniteError
from rlhf_jax.training.optimizers import Optimizer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """A model with its optimizer. `step` counts all updates; `skipped` counts the last
    updates in a row whose loss or gradient was not finite. Such an update is not
    applied; a fused one without global clipping skips only the layers that a non-finite
    gradient reaches (see `Optimizer`)."""

    step: Int[Array, ""]
    skipped: Int[Array, ""]
    model: nnx.Module
    opt_state: dict

    @classmethod
    def create(
        cls, model, optimizer: Optimizer, *, make: Callable = lambda f, *args: f(*args)
    ) -> "TrainState":
        """Return the first state of a model, which keeps its arrays.

        Args:
            make: computes the other arrays: `sharding.create` lays them out by the
                table, and `sharding.shapes_of` returns their shapes.
        """

        def others(own):
            return jnp.int32(0), jnp.int32(0), optimizer.init(own)

        step, skipped, opt_state = make(others, own_part(model))
        return cls(step, skipped, model, opt_state)


first_state = functools.partial(TrainState.create, make=create)
first_shapes = functools.partial(TrainState.create, make=shapes_of)


def compiled(train_step: Callable) -> Callable:
    """Compile a train step, `(state, ...) -> (state, metrics)`. The result takes over
    the memory of the state, but not that of a base under adapters, which other models
    may share: each of its arrays is one argument, however many models hold it."""

    def step_on_parts(own, arrays, places, *args, **kwargs):
        state = join(own, spread(arrays, places))
        state, metrics = train_step(state, *args, **kwargs)
        return own_part(state), metrics

    program = jax.jit(step_on_parts, donate_argnums=0, static_argnums=2)

    def step(state, *args, **kwargs):
        bases = base_parts(state)
        new, metrics = program(own_part(state), *once(bases), *args, **kwargs)
        return join(new, bases), metrics

    return step


def optimizer_step(
    loss_fn: Callable,
    state: TrainState,
    batch,
    *,
    optimizer: Optimizer,
    microbatches: int,
) -> tuple[TrainState, dict]:
    """Take one optimizer step on `loss_fn(model, batch) -> (loss, metrics)`, see
    `accumulate.value_and_grad`: with the whole gradient, or fused into its computation.
    Parameters that `optimizer.trainable` leaves out, and the base under adapters, have
    no gradient and stay the same.

    Returns:
        The new state and the metrics of the loss and of `apply_gradients`; of a
        mixture of experts also the loads `experts/busiest` and `experts/least`
        (`models.experts.recorded_loads`).
    """
    loss_fn = functools.partial(_with_loads, loss_fn)
    if optimizer.fused and pipe_size() > 1:
        raise ValueError(
            "optimizer.fused updates one layer after another, a pipeline's stages all "
            "at once: set it to False, or the mesh's pipe to 1."
        )
    if optimizer.fused and microbatches != 1:
        raise ValueError(
            f"{microbatches=} add up a whole gradient, which optimizer.fused "
            "never holds: set microbatches=1."
        )
    part = trained_part(own_part(state.model), optimizer.trainable)
    if optimizer.fused:
        new = fused_update(
            loss_fn, state.model, part, state.opt_state, batch, optimizer
        )
        state, update_metrics = _advance(state, new.model, new.opt_state, new.grad_norm)
        return state, new.metrics | update_metrics

    def loss_of_part(part, batch):
        return loss_fn(with_trained(state.model, part), batch)

    loss, metrics, gradients = value_and_grad(
        loss_of_part, part, batch, microbatches=microbatches
    )
    gradients = constrain_parameters(gradients)
    state, update_metrics = apply_gradients(state, loss, gradients, optimizer)
    return state, metrics | update_metrics


def _with_loads(loss_fn: Callable, model, batch) -> tuple[jax.Array, dict]:
    """Compute a loss and its metrics, with the loads of the experts of its passes."""
    with recorded_loads() as loads:
        loss, metrics = loss_fn(model, batch)
    if not loads:
        return loss, metrics
    busiest, least = (Mean.of(x) for x in jnp.stack(loads, axis=1))
    return loss, metrics | {"experts/busiest": busiest, "experts/least": least}


def apply_gradients(
    state: TrainState, loss, gradients, optimizer: Optimizer
) -> tuple[TrainState, dict]:
    """Apply one optimizer update. A loss or a gradient that is not finite leaves
    parameters and moments unchanged; only the counters advance.

    Args:
        gradients: a `Trained`, or a tree like the model.

    Returns:
        The new state and the metrics `optim/grad_norm` (before clipping) and
        `optim/skipped` (non-finite updates in a row so far).
    """
    if not isinstance(gradients, Trained):
        gradients = trained_part(gradients, optimizer.trainable)
    norm = jnp.sqrt(sum_of_squares(gradients))
    norm = jnp.where(jnp.isfinite(loss), norm, jnp.nan)
    layers, rest = trained_part(own_part(state.model), optimizer.trainable)
    states = {"layers": {}, "rest": {}}
    if layers:
        layers, states["layers"] = jax.vmap(
            lambda *layer: optimizer.apply(*layer, norm)
        )(gradients.layers, state.opt_state["layers"], layers)
    for name, x in rest.items():
        new, states["rest"][name] = optimizer.apply(
            {name: gradients.rest[name]},
            state.opt_state["rest"][name],
            {name: x},
            norm,
        )
        rest = rest | new
    return _advance(state, updated(state.model, Trained(layers, rest)), states, norm)


def _advance(state: TrainState, model, opt_state, norm) -> tuple[TrainState, dict]:
    skipped = jnp.where(jnp.isfinite(norm), 0, state.skipped + 1)
    model, opt_state = constrain_parameters((model, opt_state))
    new = TrainState(state.step + 1, skipped, model, opt_state)
    return new, {"optim/grad_norm": Mean.of(norm), "optim/skipped": skipped}


def check_learned(*states: TrainState) -> None:
    """Refuse a result whose model no update has changed.

    Raises:
        NonFiniteError: the loss or gradient of every update was not finite.
    """
    for state in states:
        tried = int(state.step)
        if 0 < tried == int(state.skipped):
            raise NonFiniteError(
                f"None of {tried} updates was applied: the loss or the gradient was "
                "never finite. Lower optimizer.learning_rate, or look at a batch in "
                "suspects/ with launch/replay.py."
            )


def to_items(state: TrainState, name: str = "model") -> dict:
    """Return a state as checkpoint items, the model apart, so that it loads alone."""
    rest = (state.step, state.skipped, state.opt_state)
    return {name: state.model, f"{name}_optimizer": rest}


def from_items(items: dict, name: str = "model") -> TrainState:
    """Invert `to_items`."""
    step, skipped, opt_state = items[f"{name}_optimizer"]
    return TrainState(step, skipped, items[name], opt_state)
