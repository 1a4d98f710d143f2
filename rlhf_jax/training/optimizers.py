"""Optimizers that work layer by layer, with clipping and a learning-rate schedule."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlhf_jax.parallel.fused_update import sum_of_squares
from rlhf_jax.parallel.layers import split


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """A rule for one layer, applied to every layer and every parameter outside them.

    It is applied to all layers at once (`state.optimizer_step`), or to one after
    another inside the backward pass (`parallel.fused_update`). State and result are the
    same, but for a gradient that is not finite where no norm of the whole gradient is
    taken (`needs_norm`): then the fused update is applied to the layers above the first
    bad one, and to those alone.
    """

    rule: optax.GradientTransformation  # gradient to direction
    learning_rate: float | jax.Array | None  # None: each step brings its own, see `at`
    clip_norm: float  # 0: no clipping
    clip: str = "global"  # by the norm of the whole gradient, or "per_layer"
    fused: bool = False  # inside the backward pass

    @property
    def needs_norm(self) -> bool:
        """Whether the whole gradient's norm is needed before the first update."""
        return bool(self.clip_norm) and self.clip == "global"

    def at(self, learning_rate: jax.Array) -> "Optimizer":
        """The optimizer for a step with this learning rate: an input of the compiled
        step, so that neither another step nor another schedule compiles it again."""
        return dataclasses.replace(self, learning_rate=learning_rate)

    def init(self, model) -> dict:
        layers, rest = split(model)
        return {
            "layers": jax.vmap(self.rule.init)(layers) if layers else {},
            "rest": {name: self.rule.init({name: x}) for name, x in rest.items()},
        }

    def apply(self, gradient, state, parameters, norm: jax.Array | None) -> tuple:
        """New parameters and state, of one layer or of one parameter outside them.

        Args:
            norm: of the whole gradient; None: not known yet, see `needs_norm`. Where it
                (or, when None, that of `gradient`) is not finite, nothing changes.
        """
        own = jnp.sqrt(sum_of_squares(gradient))
        finite = jnp.isfinite(own if norm is None else norm)
        if self.clip_norm:
            measured = norm if self.clip == "global" else own
            scale = jnp.minimum(1.0, self.clip_norm / jnp.maximum(measured, 1e-30))
            gradient = jax.tree.map(lambda g: g * scale.astype(g.dtype), gradient)
        direction, new_state = self.rule.update(gradient, state, parameters)
        updates = jax.tree.map(lambda d: -self.learning_rate * d, direction)
        new = optax.apply_updates(parameters, updates), new_state
        return jax.tree.map(
            lambda new, old: jnp.where(finite, new, old), new, (parameters, state)
        )


def learning_rate_schedule(
    peak: float, *, warmup_steps: int, total_steps: int, decay: str, final: float
) -> optax.Schedule:
    """Linear warm-up to `peak`, then `decay` to `final * peak` at `total_steps`.

    Args:
        decay: "constant", "linear" or "cosine".
    """
    after = max(total_steps - warmup_steps, 1)
    shapes = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": lambda: optax.linear_schedule(peak, final * peak, after),
        "cosine": lambda: optax.cosine_decay_schedule(peak, after, final),
    }
    if decay not in shapes:
        raise ValueError(f"{decay=} is not a known decay: {sorted(shapes)}.")
    if not warmup_steps:
        return shapes[decay]()
    # Starts above zero: the first update of a run should do something.
    warmup = optax.linear_schedule(peak / warmup_steps, peak, warmup_steps - 1)
    return optax.join_schedules([warmup, shapes[decay]()], [warmup_steps])


def is_matrix(path: tuple, leaf: jax.Array) -> bool:
    """Whether weight decay applies: to kernels, not to embeddings, norms or biases."""
    return "kernel" in jax.tree_util.keystr(path)


def adamw(
    learning_rate: float | None,
    *,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    clip_norm: float,
    moment_dtype: str | None = None,
) -> Optimizer:
    """AdamW (arXiv 1711.05101); `moment_dtype` is of the first moment, None: as the
    parameters."""
    rule = optax.chain(
        optax.scale_by_adam(b1, b2, eps, mu_dtype=moment_dtype),
        optax.add_decayed_weights(weight_decay, _decay_mask),
    )
    return Optimizer(rule, learning_rate, clip_norm)


def adafactor(
    learning_rate: float | None, *, weight_decay: float, clip_norm: float
) -> Optimizer:
    """Adafactor (arXiv 1804.04235) without momentum: its second moments are factored,
    so they take next to no memory. The learning rate is relative to the parameters."""
    rule = optax.chain(
        optax.scale_by_factored_rms(),
        optax.clip_by_block_rms(1.0),
        optax.scale_by_param_block_rms(),
        optax.add_decayed_weights(weight_decay, _decay_mask),
    )
    return Optimizer(rule, learning_rate, clip_norm)


def sgd(learning_rate: float | None, *, clip_norm: float) -> Optimizer:
    """Plain gradient descent."""
    return Optimizer(optax.identity(), learning_rate, clip_norm)


def learning_rates(config, total_steps: int) -> np.ndarray:
    """The learning rate of each step that a stage's `config.optimizer` describes,
    float32 [total_steps].

    Raises:
        ValueError: an unknown decay; the known ones are listed.
    """
    schedule = learning_rate_schedule(
        config.learning_rate,
        warmup_steps=config.warmup_steps,
        total_steps=total_steps,
        decay=config.decay,
        final=config.final,
    )
    return np.asarray(jax.vmap(schedule)(jnp.arange(total_steps)), np.float32)


def from_config(config) -> Optimizer:
    """The optimizer that a stage's `config.optimizer` describes; its learning rate is
    for each step to say.

    Raises:
        ValueError: an unknown choice; the known ones are listed.
    """
    for field, known in {
        "name": ("adamw", "adafactor", "sgd"),
        "clip": ("global", "per_layer"),
    }.items():
        if config[field] not in known:
            raise ValueError(f"optimizer.{field}={config[field]!r}: not in {known}.")
    if config.name == "adamw":
        optimizer = adamw(
            None,
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            clip_norm=config.clip_norm,
            moment_dtype=config.moment_dtype,
        )
    elif config.name == "adafactor":
        optimizer = adafactor(
            None, weight_decay=config.weight_decay, clip_norm=config.clip_norm
        )
    else:
        optimizer = sgd(None, clip_norm=config.clip_norm)
    return dataclasses.replace(optimizer, clip=config.clip, fused=config.fused)


def _decay_mask(params):
    return jax.tree_util.tree_map_with_path(is_matrix, params)
