"""Trees of arrays, compared leaf by leaf."""

import jax
import numpy as np


def assert_trees_close(got, expected, **tolerance):
    """As `np.testing.assert_allclose`; the leaf that differs is named."""
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(got),
        jax.tree.leaves(expected),
        strict=True,
    ):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(x, y, **tolerance, err_msg=name)
