"""Reductions over the elements that a mask keeps and divisions by their count.

Every function takes `x` and a Bool `mask` of the same shape (True: the element counts),
works in float32, never lets a masked value through (inf and nan included, in gradients
too), and returns 0 for an empty mask. Appending masked elements changes no result. For
one number per row, `jax.vmap` over the rows.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped


def keep(x: Shaped[Array, "*S"], mask: Bool[Array, "*S"]) -> Float[Array, "*S"]:
    """Return x in float32 with zeros where masked.

    Use it before `exp` or a product, not after: the gradient of
    `where(mask, exp(x), 0)` is 0 * inf = nan where a masked x is large.
    """
    return jnp.where(mask, x, 0).astype(jnp.float32)


def sum(x: Shaped[Array, "*S"], mask: Bool[Array, "*S"]) -> Float[Array, ""]:
    """Sum the kept elements."""
    return jnp.sum(keep(x, mask))


def mean(x: Shaped[Array, "*S"], mask: Bool[Array, "*S"]) -> Float[Array, ""]:
    """Average the kept elements: sum(x) / count, every element with equal weight.

    Over tokens [B, R] the result is the mean per token of the batch. The mean per
    sequence and then over sequences is another number: for that, vmap over rows first.
    """
    return sum(x, mask) / jnp.maximum(jnp.sum(mask), 1)


def var(x: Shaped[Array, "*S"], mask: Bool[Array, "*S"]) -> Float[Array, ""]:
    """Compute the biased variance of the kept elements: mean((x - mean(x))^2).

    Bessel's correction would divide by 0 for a single element.
    """
    return mean(_centre(x, mask) ** 2, mask)


def whiten(
    x: Shaped[Array, "*S"], mask: Bool[Array, "*S"], *, shift_mean: bool
) -> Float[Array, "*S"]:
    """Scale the kept elements to variance 1; move their mean to 0 if `shift_mean`.

    (x - mean) / sqrt(var + 1e-8), plus the mean again without `shift_mean`; zeros
    where masked. This follows the code of Ziegler et al. (2019), arXiv 1909.08593.
    """
    centred = _centre(x, mask)
    whitened = centred / jnp.sqrt(mean(centred**2, mask) + 1e-8)
    if not shift_mean:
        whitened = whitened + mean(x, mask)
    return keep(whitened, mask)


def _centre(x, mask):
    # Subtracting the mean twice removes the rounding error of the first mean (the
    # corrected two-pass algorithm): a constant 1e4 has variance 0, not 1e-6, which
    # whitening would blow up to noise of size 1.
    centred = keep(keep(x, mask) - mean(x, mask), mask)
    return keep(centred - mean(centred, mask), mask)
