import numpy as np
import pytest
from scipy import stats

from rlhf_jax.evaluation.claims import (
    Effect,
    PValues,
    detectable,
    holm,
    sign_flip,
    t_test,
    verdicts,
)


def test_the_interval_is_students_over_seeds():
    # Mean 2, standard deviation 1, standard error 1 / sqrt(3), t(0.975, 2) = 4.302653.
    effect = Effect.of([1.0, 2.0, 3.0])
    np.testing.assert_allclose(effect[:3], (2.0, 2 - 2.484138, 2 + 2.484138), rtol=1e-6)


def test_the_interval_covers_the_truth_nineteen_times_in_twenty():
    rng = np.random.default_rng(0)
    effects = [Effect.of(rng.normal(0.3, 2.0, 5)) for _ in range(4000)]
    covered = np.mean([e.low <= 0.3 <= e.high for e in effects])
    assert 0.93 < covered < 0.97


def test_one_seed_has_no_interval():
    with pytest.raises(ValueError, match="two seeds"):
        Effect.of([1.0])


VALUES = (0.5, 1.5, 1.0, 2.0)  # mean 1.25, standard error 0.3227


@pytest.mark.parametrize(
    ("expected", "bound", "p_value", "opposite"),
    [
        # t = (1.25 - bound) / 0.3227 with 3 degrees of freedom.
        ("above", 0.0, stats.t.sf(3.872983, 3), stats.t.cdf(3.872983, 3)),
        ("above", 1.0, stats.t.sf(0.774597, 3), stats.t.cdf(0.774597, 3)),
        ("below", 1.0, stats.t.cdf(0.774597, 3), stats.t.sf(0.774597, 3)),
        # The two sides of equivalence: -2 and 2.
        ("within", 2.0, stats.t.cdf(-2.323790, 3), stats.t.cdf(2.323790, 3)),
        ("within", 1.0, stats.t.cdf(0.774597, 3), stats.t.sf(0.774597, 3)),
    ],
)
def test_the_t_test_is_students(expected, bound, p_value, opposite):
    found = t_test(VALUES, expected, bound)
    np.testing.assert_allclose(found, (p_value, opposite), rtol=1e-5)


def test_signs_are_flipped_in_every_way():
    # Four values have 16 choices of signs; one of these gives as large a mean.
    assert sign_flip(VALUES, "above", 0.0) == PValues(1 / 16, 1.0)
    assert sign_flip(VALUES, "below", 0.0) == PValues(1.0, 1 / 16)
    # Around 1 they are -0.5, 0.5, 0, 1: the sums 1, 2 and, the zero's sign being free,
    # each of them twice, are as large.
    assert sign_flip(VALUES, "above", 1.0).expected == 6 / 16
    assert sign_flip(VALUES, "within", 3.0).expected == 1 / 16


def test_a_test_errs_at_its_level():
    """Under a mean at the bound, one-sided p-values at most 0.025 are as rare as
    that."""
    rng = np.random.default_rng(0)
    draws = rng.normal(0.3, 2.0, (3000, 8))
    for expected in ("above", "below"):
        found = [t_test(x, expected, 0.3).expected <= 0.025 for x in draws]
        assert 0.017 < np.mean(found) < 0.034
    # At the edge of a wide range, two one-sided tests are one.
    found = [t_test(x - 0.3 + 20, "within", 20).expected <= 0.025 for x in draws]
    assert 0.017 < np.mean(found) < 0.034


def test_worlds_that_are_all_alike():
    assert t_test([1.0, 1.0], "above", 0.0) == PValues(0.0, 1.0)
    assert t_test([0.0, 0.0], "above", 0.0) == PValues(1.0, 1.0)


def test_holm_adjusts_by_rank():
    # 3 x 0.01, then the larger of that and 2 x 0.012, then 0.5; cut at 1.
    assert holm([0.5, 0.01, 0.012]) == pytest.approx([0.5, 0.03, 0.03])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


@pytest.mark.parametrize(
    ("tests", "found"),
    [
        ([PValues(0.02, 0.98)], ["holds"]),
        ([PValues(0.98, 0.02)], ["the opposite"]),
        ([PValues(0.03, 0.97)], ["not shown"]),
        # The first alone would hold; beside another claim it does not.
        ([PValues(0.02, 0.98), PValues(0.5, 0.5)], ["not shown", "not shown"]),
        # Where one is shown, the other is tested at the whole level.
        ([PValues(0.02, 0.98), PValues(0.001, 0.9)], ["holds", "holds"]),
        ([PValues(0.9, 0.02), PValues(0.001, 0.9)], ["not shown", "holds"]),
    ],
)
def test_verdicts_share_the_level(tests, found):
    assert verdicts(tests) == found


def test_what_could_have_been_shown_is_shown_four_times_in_five():
    rng = np.random.default_rng(1)
    draws = rng.normal(0.0, 2.0, (3000, 8))
    error = 2.0 / np.sqrt(8)
    # With the true spread in place of each sample's.
    shift = detectable(Effect.of(np.linspace(-1, 1, 8)), 0.025)
    shift *= error / stats.sem(np.linspace(-1, 1, 8))
    shown = np.mean([t_test(x + shift, "above", 0.0).expected <= 0.025 for x in draws])
    assert 0.77 < shown < 0.86
