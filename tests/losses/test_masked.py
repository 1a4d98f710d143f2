import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.losses import masked

# Holes, one row of length 0, one of length 1.
MASK = np.array(
    [[1, 1, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 1, 1]],
    dtype=bool,
)
X = np.random.default_rng(0).normal(3.0, 5.0, MASK.shape).astype(np.float32)
GARBAGE = [np.nan, np.inf, -np.inf, 1e30]
REDUCTIONS = {
    "sum": (masked.sum, np.sum),
    "mean": (masked.mean, np.mean),
    "var": (masked.var, np.var),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reduction_equals_deleting_the_masked_elements(name):
    ours, numpys = REDUCTIONS[name]
    expected = numpys(X[MASK].astype(np.float64))
    np.testing.assert_allclose(ours(jnp.array(X), jnp.array(MASK)), expected, rtol=1e-5)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reduction_of_nothing_is_zero(name):
    ours, _ = REDUCTIONS[name]
    nothing = jnp.zeros(MASK.shape, bool)
    assert ours(jnp.full(MASK.shape, jnp.nan), nothing) == 0
    assert ours(jnp.zeros((0,)), jnp.zeros((0,), bool)) == 0


def test_variance_of_one_element_is_zero():
    assert masked.var(jnp.array([7.0, 9.0]), jnp.array([True, False])) == 0


def test_mean_and_variance_of_hand_written_numbers():
    # Kept 1, 2, 6: mean 9 / 3 = 3, variance (4 + 1 + 9) / 3 = 14 / 3.
    x, mask = jnp.array([1.0, 100.0, 2.0, 6.0]), jnp.array([True, False, True, True])
    np.testing.assert_allclose(masked.sum(x, mask), 9.0)
    np.testing.assert_allclose(masked.mean(x, mask), 3.0)
    np.testing.assert_allclose(masked.var(x, mask), 14 / 3, rtol=1e-6)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_rows_are_reduced_with_vmap(name):
    ours, numpys = REDUCTIONS[name]
    rows = [row[keep] for row, keep in zip(X, MASK, strict=True)]
    expected = [numpys(row) if row.size else 0.0 for row in rows]
    got = jax.vmap(ours)(jnp.array(X), jnp.array(MASK))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_bools_and_bfloat16_are_reduced_in_float32():
    ones = jnp.ones(1000, jnp.bfloat16)
    all_kept = jnp.ones(1000, bool)
    # In bfloat16, 256 + 1 = 256: a sum of ones would stop there.
    assert masked.sum(ones, all_kept) == 1000
    assert masked.mean(jnp.arange(1000) % 2 == 0, all_kept) == 0.5
    assert masked.sum(ones, all_kept).dtype == jnp.float32


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitened_elements_have_variance_one_and_the_mean_that_was_asked(shift_mean):
    white = masked.whiten(jnp.array(X), jnp.array(MASK), shift_mean=shift_mean)
    kept = np.asarray(white, np.float64)[MASK]
    mean = 0.0 if shift_mean else X[MASK].mean()
    np.testing.assert_allclose(kept.mean(), mean, atol=1e-5)
    np.testing.assert_allclose(kept.var(), 1.0, rtol=1e-5)
    assert (np.asarray(white)[~MASK] == 0).all()


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitening_equals_the_slow_reference(shift_mean):
    kept = X[MASK].astype(np.float64)
    expected = np.zeros(X.shape)
    expected[MASK] = (kept - kept.mean()) / np.sqrt(kept.var() + 1e-8)
    if not shift_mean:
        expected[MASK] += kept.mean()
    got = masked.whiten(jnp.array(X), jnp.array(MASK), shift_mean=shift_mean)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shift_mean", [True, False])
def test_appended_padding_does_not_move_the_whitened_elements(shift_mean):
    padded = np.pad(X, ((0, 2), (0, 3)), constant_values=1e6)
    padded_mask = np.pad(MASK, ((0, 2), (0, 3)))
    short = masked.whiten(jnp.array(X), jnp.array(MASK), shift_mean=shift_mean)
    long = masked.whiten(
        jnp.array(padded), jnp.array(padded_mask), shift_mean=shift_mean
    )
    np.testing.assert_allclose(long[:4, :6], short, rtol=1e-5, atol=1e-6)
    assert (np.asarray(long)[~padded_mask] == 0).all()


def test_whitening_equal_elements_gives_zeros_at_any_scale():
    """With one subtraction of the mean, seven times 1e4 / 3 whitens to -0.93 each."""
    for value in (0.1, 1e4 / 3, 1e7 / 3):
        white = masked.whiten(
            jnp.full(7, value, jnp.float32), jnp.ones(7, bool), shift_mean=True
        )
        np.testing.assert_allclose(white, 0.0, atol=1e-6)


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitening_nothing_gives_zeros(shift_mean):
    white = masked.whiten(
        jnp.full(MASK.shape, jnp.nan),
        jnp.zeros(MASK.shape, bool),
        shift_mean=shift_mean,
    )
    assert (np.asarray(white) == 0).all()


@pytest.mark.parametrize("garbage", GARBAGE)
def test_masked_garbage_changes_neither_value_nor_gradient(garbage):
    mask = jnp.array(MASK)

    @jax.jit
    @jax.value_and_grad
    def every_function(x):
        white = masked.whiten(x, mask, shift_mean=True)
        return (
            masked.sum(x, mask)
            + masked.mean(masked.keep(x, mask) ** 2, mask)
            + masked.var(x, mask)
            + jnp.sum(white**3)
            + jnp.sum(jnp.exp(0.01 * masked.keep(x, mask)))
        )

    clean = jnp.array(np.where(MASK, X, 0).astype(np.float32))
    dirty = jnp.array(np.where(MASK, X, garbage).astype(np.float32))
    expected = every_function(clean)
    got = every_function(dirty)
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(got[1], expected[1], rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(got[1])[~MASK], 0.0)
