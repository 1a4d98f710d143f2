import itertools
import math

import numpy as np
import pytest

from rlhf_jax.evaluation.best_of_n import expected_of_best, kl_of_best, plot

RNG = np.random.default_rng(0)


def slow_expectation(scores, values, n):
    """Over every subset; samples of one score share the mean of their values."""
    picked = []
    for subset in itertools.combinations(range(len(scores)), n):
        best = max(scores[i] for i in subset)
        picked.append(np.mean(values[scores == best]))
    return np.mean(picked)


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_the_estimate_is_the_mean_over_all_subsets(n):
    scores, values = RNG.normal(size=(2, 4, 6))
    scores[1] = [0, 1, 1, 2, 2, 2]
    found = expected_of_best(scores, values, n=n)
    expected = [slow_expectation(s, v, n) for s, v in zip(scores, values, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_best_of_one_is_the_mean_and_the_best_of_all_the_favourite():
    scores, values = RNG.normal(size=(2, 3, 8))
    np.testing.assert_allclose(expected_of_best(scores, values, n=1), values.mean(1))
    favourite = values[np.arange(3), scores.argmax(axis=1)]
    np.testing.assert_allclose(expected_of_best(scores, values, n=8), favourite)


def test_the_picked_score_rises_with_n_and_the_truth_need_not():
    truth = RNG.normal(size=(300, 16))
    scores = np.where(truth > 1.0, 9.0 - truth, truth)  # of the good, the worse first

    def curve(values):
        return [expected_of_best(scores, values, n=n).mean() for n in (1, 2, 4, 8, 16)]

    assert np.all(np.diff(curve(scores)) > 0)
    assert curve(truth)[-1] < expected_of_best(truth, truth, n=16).mean() - 0.3


def test_more_than_there_are_cannot_be_drawn():
    with pytest.raises(ValueError, match="between 1 and the 3 samples"):
        expected_of_best(np.zeros((2, 3)), np.zeros((2, 3)), n=4)


def test_divergence_starts_at_none():
    assert kl_of_best(1) == 0
    assert kl_of_best(64) == pytest.approx(math.log(64) - 63 / 64)


def test_the_curve_is_plotted(tmp_path):
    bars = {"mean": 1.0, "low": 0.5, "high": 1.5, "n": 9}
    rows = [
        {"n": n, "kl": kl_of_best(n), "quality": bars, "oracle": bars, "score": bars}
        for n in (1, 2)
    ]
    plot(rows, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
