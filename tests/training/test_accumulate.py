import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.training.accumulate import in_parts, value_and_grad
from rlhf_jax.training.metrics import Mean


def loss_fn(w, batch, count):
    """A mean over tokens whose number differs from row to row."""
    x, mask = batch
    loss = Mean.of((x @ w) ** 2, mask)
    return loss.total / count, {"loss": loss}


@pytest.mark.parametrize("microbatches", [1, 2, 4, 8])
def test_parts_give_the_gradient_and_metrics_of_the_whole(microbatches):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(8, 5, 3)), jnp.float32)
    mask = jnp.arange(5)[None] < jnp.asarray(rng.integers(1, 6, (8, 1)))
    w, rows = jnp.ones(3), set()

    def share(w, batch):
        rows.add(len(batch[0]))
        return loss_fn(w, batch, mask.sum())

    loss, metrics, gradient = value_and_grad(
        share, w, (x, mask), microbatches=microbatches
    )
    assert rows == {8 // microbatches}  # so many are in memory at a time
    expected, expected_gradient = jax.value_and_grad(
        lambda w: jnp.where(mask, (x @ w) ** 2, 0).sum() / mask.sum()
    )(w)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"].value(), expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5)
    # Not the mean of means, which is another number here.
    means = jnp.stack(
        [Mean.of((x[i] @ w) ** 2, mask[i]).total / mask[i].sum() for i in range(8)]
    )
    assert abs(means.mean() - expected) > 1e-3


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_rows_come_back_in_their_order_from_parts(parts):
    rows = {"x": jnp.arange(24.0).reshape(8, 3), "y": jnp.arange(8)}
    seen = set()

    def function(batch):
        seen.add(len(batch["x"]))
        return batch["x"], batch["y"], None

    got = in_parts(function, rows, parts=parts)
    assert seen == {8 // parts}
    np.testing.assert_array_equal(got[0], rows["x"])
    np.testing.assert_array_equal(got[1], rows["y"])
    assert got[2] is None
