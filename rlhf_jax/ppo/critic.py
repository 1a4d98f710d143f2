"""The start of the critic: a reward model whose scores are fitted to the first returns.

The value model starts as the reward model, which predicts scores. PPO's returns are the
scores less those of the baseline, and less the KL penalty: a line of the values
corrects level and spread. GAE's returns depend on the values in their turn, so the line
is the one whose own errors are uncorrelated with its values: least-squares temporal
differences (LSTD(lambda): Boyan, 2002, Machine Learning 49). The explained variance
then starts at 0 or above. The head is affine, and holds the line exactly.

Letters: B batch, R response.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from rlhf_jax.batches import Experience
from rlhf_jax.losses import masked
from rlhf_jax.losses.advantages import gae
from rlhf_jax.models.heads import ScoreModel
from rlhf_jax.ppo.draws import Rows


def fit_critic(
    model: ScoreModel, rows: Rows, experience: Experience, *, gamma: float, lam: float
) -> Rows:
    """Fit the head of the value model, in place, to the returns of an experience, which
    GAE estimated with `gamma` and `lam`. Return the rows with the values that the model
    has now."""
    given = experience.old_values, experience.returns, experience.response_mask
    before = rows.outputs.values, rows.responses.response_mask
    parts = model.head.kernel[...], model.head.bias[...], model.offset[...]
    parts, values = _fitted(*given, *before, *parts, gamma=gamma, lam=lam)
    model.head.kernel[...], model.head.bias[...], model.offset[...] = parts
    return rows._replace(outputs=rows.outputs._replace(values=values))


@jax.jit
def _fitted(
    old_values: Array,
    returns: Array,
    learned: Array,
    values: Array,
    mask: Array,
    kernel: Array,
    bias: Array,
    offset: Array,
    *,
    gamma: Array,
    lam: Array,
) -> tuple[tuple[Array, Array, Array], Array]:
    scale, shift = fit_line(
        values=old_values, returns=returns, mask=learned, gamma=gamma, lam=lam
    )
    # Numbers that are not finite would stay in the head for ever.
    finite = jnp.isfinite(scale) & jnp.isfinite(shift)
    scale, shift = jnp.where(finite, scale, 1.0), jnp.where(finite, shift, 0.0)
    head = (
        (scale * kernel.astype(jnp.float32)).astype(kernel.dtype),
        (scale * (bias.astype(jnp.float32) - offset) + shift).astype(bias.dtype),
        jnp.zeros_like(offset),
    )
    return head, masked.keep(scale * values + shift, mask)


def fit_line(
    *,
    values: Float[Array, "B R"],
    returns: Float[Array, "B R"],
    mask: Bool[Array, "B R"],
    gamma: Float[ArrayLike, ""],
    lam: Float[ArrayLike, ""],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return scale and shift of the line of the values whose errors, GAE's returns less
    these new values, have mean 0 and no correlation with the values. The scale is 0,
    and the mean alone is 0, where it would be below 0 or all values are equal.

    Args:
        returns: those that GAE estimates with `values`.
        mask: the tokens that are learned from; of a response all or none.
    """
    centre = masked.mean(values, mask)
    centred = masked.keep(values - centre, mask)
    ones = mask.astype(jnp.float32)
    # Errors are linear in the values: those of values + a * centred + b * ones are
    # errors + a * by_scale + b * by_shift.
    errors = masked.keep(returns - values, mask)
    part = functools.partial(gae, gamma=gamma, lam=lam)
    by_scale, by_shift = (
        jax.vmap(part)(rewards=jnp.zeros_like(x), values=x, mask=mask).advantages
        for x in (centred, ones)
    )
    # Both equations without b, which makes the mean 0.
    level = masked.mean(by_shift, mask)
    errors_left = errors - masked.mean(errors, mask) / level * by_shift
    scale_left = by_scale - masked.mean(by_scale, mask) / level * by_shift
    slope = masked.mean(centred * scale_left, mask)  # below 0, or all values are equal
    change = -masked.mean(centred * errors_left, mask)
    scale = 1.0 + jnp.maximum(jnp.where(slope < 0, change / slope, -1.0), -1.0)
    shift = -masked.mean(errors + (scale - 1.0) * by_scale, mask) / level
    return scale, shift - (scale - 1.0) * centre
