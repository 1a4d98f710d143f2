import numpy as np
import pytest

from rlhf_jax.evaluation.claims import Effect, verdict


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


@pytest.mark.parametrize(
    ("interval", "expected", "bound", "found"),
    [
        ((0.1, 0.5), "above", 0.0, "holds"),
        ((-0.1, 0.5), "above", 0.0, "not shown"),
        ((-0.5, -0.1), "above", 0.0, "the opposite"),
        ((-0.5, -0.1), "below", 0.0, "holds"),
        ((0.1, 0.5), "below", 0.0, "the opposite"),
        ((-0.015, 0.5), "above", -0.02, "holds"),
    ],
)
def test_a_claim_holds_when_the_whole_interval_is_on_its_side(
    interval, expected, bound, found
):
    effect = Effect(sum(interval) / 2, *interval, ())
    assert verdict(effect, expected, bound) == found
