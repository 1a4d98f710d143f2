"""AdamW with a learning-rate schedule, clipping and decay on matrices only."""

import jax
import optax


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
    schedule: optax.Schedule,
    *,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    clip_norm: float,
) -> optax.GradientTransformation:
    """Clip by global norm (0 turns that off), then AdamW (arXiv 1711.05101)."""
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()

    def decay_mask(params):
        return jax.tree_util.tree_map_with_path(is_matrix, params)

    return optax.chain(
        clip,
        optax.adamw(schedule, b1, b2, eps, weight_decay=weight_decay, mask=decay_mask),
    )


def from_config(
    config, total_steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimizer that a stage's `config.optimizer` describes, and its schedule."""
    schedule = learning_rate_schedule(
        config.learning_rate,
        warmup_steps=config.warmup_steps,
        total_steps=total_steps,
        decay=config.decay,
        final=config.final,
    )
    optimizer = adamw(
        schedule,
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        clip_norm=config.clip_norm,
    )
    return optimizer, schedule
