import numpy as np
import pytest

from rlhf_jax.evaluation.equal_kl import at_kl, gain_by_root_kl, mean_to_kl

KLS, VALUES = (4.0, 0.0, 1.0), (5.0, 1.0, 2.0)  # in any order


@pytest.mark.parametrize(
    ("kl", "value"),
    [(0.0, 1.0), (0.25, 1.5), (1.0, 2.0), (2.25, 3.5), (4.0, 5.0), (9.0, 5.0)],
)
def test_a_family_is_a_line_in_the_root_of_its_kl(kl, value):
    assert at_kl(kl, KLS, VALUES) == pytest.approx(value)


def test_the_height_of_a_frontier():
    # Roots 0 to 1: values 1 to 2; roots 1 to 2: values 2 to 5.
    assert mean_to_kl(1.0, KLS, VALUES) == pytest.approx(1.5)
    assert mean_to_kl(4.0, KLS, VALUES) == pytest.approx((1.5 + 3.5) / 2, abs=0.02)


def test_an_estimate_below_zero_is_no_distance():
    assert at_kl(-0.01, KLS, VALUES) == 1.0
    assert at_kl(1.0, (-0.01, 1.0), (1.0, 2.0)) == 2.0
    assert np.isfinite(mean_to_kl(-0.01, KLS, VALUES))


def test_equal_gains_at_a_quarter_of_the_kl_count_twice():
    assert gain_by_root_kl(1.0, 1.0) == 2 * gain_by_root_kl(1.0, 4.0)
