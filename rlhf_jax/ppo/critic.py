"""The start of the critic: a reward model whose scores are fitted to the first returns.

The value model starts as the reward model, which predicts scores. PPO's returns are the
scores less those of the baseline, and less the KL penalty: a line through the first
returns corrects level and spread, so that the explained variance starts at 0 or above.
The head is affine, and holds the line exactly.

Letters: B batch, R response.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rlhf_jax.batches import Experience
from rlhf_jax.losses import masked
from rlhf_jax.models.heads import ScoreModel
from rlhf_jax.ppo.draws import Rows


def fit_critic(model: ScoreModel, rows: Rows, experience: Experience) -> Rows:
    """Fit the head of the value model, in place, to the returns of an experience.
    Return the rows with the values that the model has now."""
    given = experience.old_values, experience.returns, experience.response_mask
    before = rows.outputs.values, rows.responses.response_mask
    parts = model.head.kernel[...], model.head.bias[...], model.offset[...]
    parts, values = _fitted(*given, *before, *parts)
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
) -> tuple[tuple[Array, Array, Array], Array]:
    scale, shift = fit_line(values=old_values, returns=returns, mask=learned)
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
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return scale and shift of the line from values to returns with the least squares
    among those that do not fall; the scale is 0 if all values are equal."""
    means = masked.mean(values, mask), masked.mean(returns, mask)
    apart = masked.keep(values, mask) - means[0], masked.keep(returns, mask) - means[1]
    variance = masked.mean(apart[0] ** 2, mask)
    covariance = masked.mean(apart[0] * apart[1], mask)
    slope = covariance / jnp.where(variance > 0, variance, 1.0)
    scale = jnp.maximum(slope, 0.0)
    return scale, means[1] - scale * means[0]
