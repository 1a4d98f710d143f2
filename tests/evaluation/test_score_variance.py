"""The variance that a baseline leaves is that of scores from which it is subtracted."""

import numpy as np
import pytest

from rlhf_jax.evaluation.score_variance import (
    ScoreVariance,
    best_baselines,
    least_answers,
    score_variance,
    variance_left,
)

N, K = 4000, 8


@pytest.fixture(scope="module")
def drawn():
    """Scores [N, K] with B = 2 and W = 0.5, the greedy answer's scores, and the scores
    of further answers."""
    rng = np.random.default_rng(0)
    mean = rng.normal(3.0, np.sqrt(2.0), N)
    sampled = mean[:, None] + rng.normal(0.0, np.sqrt(0.5), (N, 2 * K))
    greedy = mean + 1.0 + rng.normal(0.0, np.sqrt(0.1), N)
    return sampled[:, :K], greedy, sampled[:, K:]


def test_variances_are_estimated_without_bias(drawn):
    between, within = score_variance(drawn[0])
    np.testing.assert_allclose(between, 2.0, rtol=0.05)
    np.testing.assert_allclose(within, 0.5, rtol=0.05)
    rng = np.random.default_rng(1)
    alike = [score_variance(rng.normal(size=(50, 2))).between for _ in range(2000)]
    assert abs(np.mean(alike)) < 0.02  # without the correction it would be 0.5
    assert np.isnan(score_variance(np.array([[1.0, 1.0], [2.0, 2.0]])).ratio)


def test_what_a_baseline_leaves_is_what_is_measured_with_it(drawn):
    scores, greedy, further = drawn
    left = variance_left(scores, greedy)
    total = scores.sum(axis=1, keepdims=True)
    measured = {
        "none": scores,
        "greedy": scores - greedy[:, None],
        "mean of 1": scores - further[:, :1],
        "mean of 4": scores - further[:, :4].mean(axis=1, keepdims=True),
        "mean of 8": scores - further.mean(axis=1, keepdims=True),
        "leave-one-out of 8": scores - (total - scores) / (K - 1),
    }
    assert left.keys() == measured.keys() | {"the prompt's mean"}
    for name, values in measured.items():
        np.testing.assert_allclose(left[name], values.var(), rtol=0.05, err_msg=name)
    assert left["the prompt's mean"] < left["mean of 8"] < left["greedy"] < left["none"]


@pytest.mark.parametrize(
    ("between", "least"),
    [(2.0, 1), (0.5, 2), (0.26, 2), (0.1, 6), (0.0, None), (-1, None)],
)
def test_the_mean_of_the_least_number_of_answers_lowers_the_variance(between, least):
    variance = ScoreVariance(between=between, within=0.5)
    assert least_answers(variance) == least
    if least:
        ratio = variance.ratio
        assert 1 / least < ratio and (least == 1 or 1 / (least - 1) >= ratio)


@pytest.mark.parametrize(
    ("changes", "best"),
    [
        ({}, ("leave-one-out of 8", "none")),
        ({"greedy": 1.3}, ("leave-one-out of 8", "greedy")),
        ({"greedy": 1.01}, ("greedy", "greedy")),
        ({"mean of 1": 1.2, "mean of 8": 1.1}, ("mean of 8", "mean of 1")),
    ],
)
def test_the_best_baseline_is_one_that_can_be_had(changes, best):
    left = {"none": 1.4, "greedy": 1.5, "mean of 1": 2.0, "mean of 8": 1.125}
    left |= {"leave-one-out of 8": 1.12, "the prompt's mean": 1.0}
    assert best_baselines(left | changes) == best
