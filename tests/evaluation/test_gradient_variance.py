"""The variance of the policy gradient is that of explicit gradients, and follows the
law of the scores where gradients and scores are independent."""

import math

import numpy as np
import pytest

from rlhf_jax.evaluation.gradient_variance import (
    compare_gradients,
    crossing,
    gradient_variance,
    offsets,
    relative_variance,
)
from rlhf_jax.evaluation.score_variance import score_variance

RATIOS = (0.25, 0.5, 1.0, 2.0, 4.0)


def draw(prompts, samples, seed=0):
    """Scores [N, K] with B = 0.7 and W = 1, the greedy answer's, and normal numbers."""
    rng = np.random.default_rng(seed)
    mean = rng.normal(2.0, math.sqrt(0.7), prompts)
    scores = mean[:, None] + rng.normal(size=(prompts, samples))
    greedy = mean + 0.5 * rng.normal(size=prompts)
    return scores.astype(np.float32), greedy.astype(np.float32), rng


def test_it_is_the_trace_of_the_covariance_of_explicit_gradients():
    """A linear softmax policy; directions of an orthonormal basis make it exact."""
    rng = np.random.default_rng(0)
    features, weights = rng.normal(size=(50, 4)), rng.normal(size=(4, 3))
    logits = features @ weights
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    chosen = np.eye(3)[rng.integers(3, size=50)]
    grads = (features[:, :, None] * (chosen - probs)[:, None]).reshape(50, 12)
    advantages = rng.normal(1.0, 2.0, size=50)
    basis = np.linalg.qr(rng.normal(size=(12, 12)))[0] * math.sqrt(12)
    trace = np.trace(np.cov(advantages[:, None] * grads, rowvar=False))
    variance = gradient_variance(advantages, (grads @ basis).astype(np.float32))
    assert variance == pytest.approx(trace, rel=1e-5)


@pytest.mark.parametrize("ratio", [0.01, 0.3, 0.7, 1.0, 8.0])
def test_offsets_set_the_ratio_and_leave_the_variance_within(ratio):
    scores, _, rng = draw(20, 5)
    shift = offsets(scores, ratio, rng.normal(size=20))
    assert shift.shape == (20,) and abs(shift.mean()) < 1e-12
    within = score_variance(scores).within
    moved = score_variance(scores + shift[:, None])
    assert moved.within == pytest.approx(within, rel=1e-5)
    assert moved.between == pytest.approx(ratio * within, rel=1e-5)


def test_offsets_take_the_place_of_the_mean_scores():
    scores, _, rng = draw(20, 5)
    normal = rng.normal(size=20)
    moved = scores + offsets(scores, 0.3, normal)[:, None]
    assert np.corrcoef(moved.mean(axis=1), normal)[0, 1] == pytest.approx(1)
    assert moved.mean() == pytest.approx(scores.mean())


def test_each_baseline_is_of_answers_other_than_the_response():
    """One after another, by the definitions, with the offset in all scores."""
    scores, greedy, rng = draw(30, 6)
    normal = rng.normal(size=30)
    # Gradients that depend on the scores, so that the law of the scores fails.
    derivatives = rng.normal(size=(30, 2, 3)) * np.abs(scores[:, :2, None])
    measured = relative_variance(scores, greedy, derivatives, normal[None], RATIOS)
    for i, ratio in enumerate(RATIOS):
        shift = offsets(scores, ratio, normal)
        moved, likeliest = scores + shift[:, None], greedy + shift

        def variance(baseline, moved=moved):
            advantages = [
                moved[n, j] - baseline(n, [k for k in range(6) if k != j])
                for n in range(30)
                for j in range(2)
            ]
            return gradient_variance(np.array(advantages), derivatives.reshape(-1, 3))

        def of_mean(size, moved=moved, variance=variance):
            def neighbours(start):
                at = [(start + k) % 5 for k in range(size)]
                return lambda n, others: np.mean([moved[n, others[k]] for k in at])

            return np.mean([variance(neighbours(start)) for start in range(5)])

        expected = {
            "mean of 1": of_mean(1),
            "mean of 4": of_mean(4),
            "leave-one-out of 6": of_mean(5),
            "greedy": variance(lambda n, _, likeliest=likeliest: likeliest[n]),
        }
        none = variance(lambda n, _, moved=moved: moved.mean())
        assert measured.keys() == expected.keys()
        for name, value in expected.items():
            assert measured[name][i] == pytest.approx(value / none, rel=1e-5), name


def test_independent_gradients_cross_where_the_scores_do():
    scores, greedy, rng = draw(20_000, 8)
    derivatives, normal = rng.normal(size=(20_000, 2, 2)), rng.normal(size=20_000)
    measured = relative_variance(scores, greedy, derivatives, normal[None], RATIOS)
    for size in (1, 4):
        relative = measured[f"mean of {size}"]
        law = [(1 + 1 / size) / (1 + x) for x in RATIOS]
        assert relative == pytest.approx(law, rel=0.05)
        assert crossing(RATIOS, relative) == pytest.approx(1 / size, rel=0.05)


def test_the_report_has_what_the_scores_predict_and_intervals():
    scores, greedy, rng = draw(40, 6)
    derivatives = np.repeat(rng.normal(size=(40, 1, 3)), 2, axis=1)
    report = compare_gradients(scores, greedy, derivatives, RATIOS, seed=0)
    law = {"mean of 1": 1.0, "mean of 4": 1 / 4, "leave-one-out of 6": 1 / 5}
    for name, noise in law.items():
        expected = [(1 + noise) / (1 + ratio) for ratio in RATIOS]
        assert report["predicted"][name] == pytest.approx(expected, rel=1e-4)
    assert report["predicted"].keys() == law.keys() | {"greedy"}
    assert report["predicted"].keys() == report["relative variance"].keys()
    assert (report["responses"], report["directions"]) == (80, 3)
    for name in ("mean of 1", "mean of 4"):
        low, x, high = (
            report[key][name] for key in ("crossing_low", "crossing", "crossing_high")
        )
        assert low < x < high


@pytest.mark.parametrize(
    ("relative", "ratio"),
    [
        ([4.0, 2.0, 0.5], 2 * math.sqrt(2)),  # between the last two
        ([1.0, 0.5, 0.25], 1.0),
        ([2.0, 0.5, 3.0], math.sqrt(2)),  # the first fall
        ([0.5, 0.25, 0.1], 0.5),  # beyond the first
        ([9.0, 4.0, 2.0], 8.0),  # beyond the last
        ([2.0, 2.0, 2.0], math.inf),
        ([0.5, 0.5, 0.5], 0.0),
    ],
)
def test_the_crossing_is_interpolated_or_extrapolated(relative, ratio):
    assert crossing((1.0, 2.0, 4.0), np.array(relative)) == pytest.approx(ratio)
