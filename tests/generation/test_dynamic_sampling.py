import numpy as np
import pytest

from rlhf_jax.generation.dynamic_sampling import fill


def batch(first: int):
    """Four prompts of two rows each, numbered from `first`; None stays None."""
    rows = np.arange(first, first + 8)
    return {"tokens": np.stack([rows, -rows], 1), "scores": rows / 2, "values": None}


@pytest.mark.parametrize(
    ("wanted", "other", "rows", "full"),
    [
        # The unwanted prompts 1 and 2 become the wanted prompts 0 and 3 of the other.
        ("1001", "1001", [0, 1, 10, 11, 16, 17, 6, 7], "1111"),
        ("1011", "0111", [0, 1, 12, 13, 4, 5, 6, 7], "1111"),  # the first is enough
        ("0001", "0100", [12, 13, 2, 3, 4, 5, 6, 7], "1001"),  # too few
        ("1111", "1111", range(8), "1111"),
        ("0000", "0000", range(8), "0000"),
    ],
)
def test_unwanted_prompts_are_replaced_in_order(wanted, other, rows, full):
    def flags(text):
        return np.array([c == "1" for c in text])

    before = batch(0)
    filled, is_wanted = fill(before, flags(wanted), batch(10), flags(other))
    np.testing.assert_array_equal(filled["tokens"][:, 0], rows)
    np.testing.assert_array_equal(filled["tokens"][:, 1], -np.asarray(rows))
    np.testing.assert_array_equal(filled["scores"], np.asarray(rows) / 2)
    assert filled["values"] is None
    np.testing.assert_array_equal(is_wanted, flags(full))
    np.testing.assert_array_equal(before["tokens"], batch(0)["tokens"])  # untouched
