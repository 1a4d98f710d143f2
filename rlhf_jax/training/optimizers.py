"""Optimizers that work layer by layer, with clipping and a learning-rate schedule."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlhf_jax.parallel.fused_update import sum_of_squares
from rlhf_jax.parallel.layers import trained_part


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """A rule for one layer, applied to each layer and to each parameter outside layers.

    The rule is applied to all layers at once (`state.optimizer_step`), or to one layer
    after another inside the backward pass (`parallel.fused_update`). State and result
    are the same, except for a non-finite gradient where the norm of the whole gradient
    is not computed (`needs_norm`): then the fused update applies only to the layers
    above the first non-finite one.
    """

    rule: optax.GradientTransformation  # from gradient to direction
    learning_rate: float | jax.Array | None  # None where each step sets it, see `at`
    clip_norm: float  # the largest norm of a gradient; 0 does not clip
    clip: str = "global"  # by the norm of the whole gradient, or "per_layer"
    fused: bool = False  # True updates inside the backward pass
    trainable: str = ""  # pattern of the trained parameters, see `trained_part`

    @property
    def needs_norm(self) -> bool:
        """True if the norm of the whole gradient is needed before the first update."""
        return bool(self.clip_norm) and self.clip == "global"

    def at(self, learning_rate: jax.Array) -> "Optimizer":
        """Return the optimizer with the learning rate of a step. The learning rate is
        an input of the compiled step, which other steps and schedules do not
        recompile."""
        return dataclasses.replace(self, learning_rate=learning_rate)

    def init(self, model) -> dict:
        layers, rest = trained_part(model, self.trainable)
        return {
            "layers": jax.vmap(self.rule.init)(layers) if layers else {},
            "rest": {name: self.rule.init({name: x}) for name, x in rest.items()},
        }

    def apply(self, gradient, state, parameters, norm: jax.Array | None) -> tuple:
        """Return the new parameters and state of one layer, or of one parameter outside
        layers. Neither changes where the norm is not finite.

        Args:
            norm: the norm of the whole gradient; None takes the norm of `gradient`, see
                `needs_norm`.
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
    """Return a linear warm-up to `peak`, then `decay` to `final * peak` at
    `total_steps`.

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
    # The warm-up starts above zero, so that the first update has an effect.
    warmup = optax.linear_schedule(peak / warmup_steps, peak, warmup_steps - 1)
    return optax.join_schedules([warmup, shapes[decay]()], [warmup_steps])


def is_matrix(path: tuple, leaf: jax.Array) -> bool:
    """Return True for a parameter with weight decay: a kernel or an adapter's matrix,
    not an embedding, norm or bias."""
    name = jax.tree_util.keystr(path)
    return "kernel" in name or "lora_" in name


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
    """Return AdamW (arXiv 1711.05101); `moment_dtype` is the dtype of the first moment,
    None for that of the parameters."""
    rule = optax.chain(
        optax.scale_by_adam(b1, b2, eps, mu_dtype=moment_dtype),
        optax.add_decayed_weights(weight_decay, _decay_mask),
    )
    return Optimizer(rule, learning_rate, clip_norm)


def adafactor(
    learning_rate: float | None, *, weight_decay: float, clip_norm: float
) -> Optimizer:
    """Return Adafactor (arXiv 1804.04235) without momentum: the second moments are
    factored and take almost no memory. The learning rate is relative to the
    parameters."""
    rule = optax.chain(
        optax.scale_by_factored_rms(),
        optax.clip_by_block_rms(1.0),
        optax.scale_by_param_block_rms(),
        optax.add_decayed_weights(weight_decay, _decay_mask),
    )
    return Optimizer(rule, learning_rate, clip_norm)


def sgd(learning_rate: float | None, *, clip_norm: float) -> Optimizer:
    """Return plain gradient descent."""
    return Optimizer(optax.identity(), learning_rate, clip_norm)


def learning_rates(config, total_steps: int) -> np.ndarray:
    """Return the learning rate of each step by a stage's `config.optimizer`: float32
    [total_steps].

    Raises:
        ValueError: the decay does not exist; the existing ones are listed.
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
    """Return the optimizer that a stage's `config.optimizer` describes; each step sets
    the learning rate (`Optimizer.at`).

    Raises:
        ValueError: a choice does not exist; the existing ones are listed.
    """
    for field, choices in {
        "name": ("adamw", "adafactor", "sgd"),
        "clip": ("global", "per_layer"),
    }.items():
        if config[field] not in choices:
            raise ValueError(f"optimizer.{field}={config[field]!r}: not in {choices}.")
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
    return dataclasses.replace(
        optimizer,
        clip=config.clip,
        fused=config.fused,
        trainable=config.trainable,
    )


def _decay_mask(params):
    return jax.tree_util.tree_map_with_path(is_matrix, params)
