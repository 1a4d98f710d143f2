"""Linear heads on the hidden states of a frozen model."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.model_selection import GroupKFold

from rlhf_jax.data.batching import packed_pairs
from rlhf_jax.data.encoding import Pair
from rlhf_jax.losses.reward import ranking_loss

RIDGES = np.logspace(-4, 1, 6)  # weights of a head's squared coefficients, to choose by
INNER_FOLDS = 5  # by which a head's ridge is chosen
ITERATIONS = 300  # of the fit of a head, at most
TOLERANCE = 1e-5  # the norm of the gradient at which a fit ends
WIDTHS = 64  # tokens; widths of batches are rounded up to a multiple


@jax.jit
def _last_hidden(model, batch):
    hidden = model.hidden(batch.tokens, batch.mask, segments=batch.segments)
    return jnp.take_along_axis(hidden, batch.ends[..., None], axis=1)


def hidden_states(
    model, rows: Sequence[Pair], *, pad_id: int, batch_size: int
) -> np.ndarray:
    """Return the hidden states at the last tokens of two responses: [rows, 2, D]."""
    states = []
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        batch = packed_pairs(
            part, pad_id=pad_id, multiple=WIDTHS, batch_size=batch_size
        )
        states.append(np.asarray(_last_hidden(model, batch))[: len(part)])
    return np.concatenate(states)


def choose_ridge(
    features: np.ndarray, conversation: np.ndarray, fit: Callable
) -> float:
    """Return the ridge of RIDGES with the smallest ranking loss on held-out
    conversations."""
    losses = np.zeros(len(RIDGES))
    inner = GroupKFold(min(INNER_FOLDS, len(np.unique(conversation))))
    for _, held in inner.split(features, groups=conversation):
        is_held = np.zeros(len(features), np.float32)
        is_held[held] = 1.0
        for i, ridge in enumerate(RIDGES):
            head = fit(features, 1 - is_held, ridge=ridge)
            losses[i] += _head_loss(head, features, is_held, 0.0, 0.0) * len(held)
    return float(RIDGES[losses.argmin()])


@jax.jit
def fit_head(features, weight, *, regularisation, ridge):
    """Fit a linear head float32 [D] by the ranking loss, with L-BFGS.

    Args:
        features: float32 [pairs, 2, D], chosen and rejected, with mean 0.
        weight: float32 [pairs], the weight of each pair.
        regularisation: the weight of the squared scores.
        ridge: half of it is the weight of the head's squared coefficients.
    """

    def loss(head):
        return _head_loss(head, features, weight, regularisation, ridge)

    solver, slope = optax.lbfgs(), optax.value_and_grad_from_state(loss)

    def step(carry):
        head, state = carry
        value, gradient = slope(head, state=state)
        updates, state = solver.update(
            gradient, state, head, value=value, grad=gradient, value_fn=loss
        )
        return optax.apply_updates(head, updates), state

    def is_under_way(carry):
        state = carry[1]
        count, gradient = (optax.tree.get(state, x) for x in ("count", "grad"))
        is_steep = jnp.linalg.norm(gradient) > TOLERANCE
        return (count == 0) | ((count < ITERATIONS) & is_steep)

    head = jnp.zeros(features.shape[-1], jnp.float32)
    return jax.lax.while_loop(is_under_way, step, (head, solver.init(head)))[0]


@jax.jit
def _head_loss(head, features, weight, regularisation, ridge):
    scores = features @ head
    loss = ranking_loss(
        chosen_scores=scores[:, 0],
        rejected_scores=scores[:, 1],
        margin=0.0,
        label_smoothing=0.0,
        score_regularisation=regularisation,
    ).loss
    return (weight * loss).sum() / weight.sum() + 0.5 * ridge * jnp.square(head).sum()
