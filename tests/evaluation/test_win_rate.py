import numpy as np
import pytest

from rlhf_jax.evaluation.win_rate import (
    bradley_terry,
    by_group,
    length_controlled,
    mean_with_interval,
    results,
    win_rate,
)


def test_differences_up_to_the_margin_are_ties():
    found = results(
        np.array([1.0, 0.0, 0.5]), np.array([0.0, 1.0, 0.4]), tie_margin=0.1
    )
    np.testing.assert_array_equal(found, [1, -1, 0])


def test_shares_and_net():
    found = win_rate(np.array([1, 1, 1, 0, -1.0]), seed=0)
    assert found["win"] == pytest.approx(0.6)
    assert found["tie"] == pytest.approx(0.2)
    assert found["lose"] == pytest.approx(0.2)
    assert found["net"] == pytest.approx(0.4)
    assert found["net_low"] < 0.4 < found["net_high"]


def test_both_orders_may_disagree():
    """A judge that changes its mind with the order has said half a win."""
    found = win_rate(np.array([0.5, 0.5]), seed=0)
    assert found["net"] == found["net_low"] == found["net_high"] == 0.5


def test_the_interval_covers_the_truth_nineteen_times_in_twenty():
    rng = np.random.default_rng(0)
    shares, truth = [0.2, 0.3, 0.5], 0.3
    covered = []
    for seed in range(400):
        found = win_rate(rng.choice([-1.0, 0.0, 1.0], 200, p=shares), seed=seed)
        covered.append(found["net_low"] <= truth <= found["net_high"])
    assert 0.93 <= np.mean(covered) <= 0.97


def test_groups_are_judged_apart():
    found = by_group(np.array([1.0, 1, -1]), ["poem", "poem", "sum"], seed=0)
    assert found["poem"]["net"] == 1 and found["sum"]["net"] == -1
    assert found["poem"]["prompts"] == 2


def test_wins_that_length_alone_brings_are_taken_out():
    """A judge that only counts tokens, and a model that is 30 tokens longer."""
    rng = np.random.default_rng(1)
    difference = rng.normal(30.0, 30.0, 500)
    result = np.sign(rng.logistic(difference / 15))
    plain = win_rate(result, seed=0)
    controlled = length_controlled(result, difference, seed=0)
    assert plain["net_low"] > 0.4
    assert abs(controlled["length_controlled_net"]) < 0.15


def test_wins_that_have_nothing_to_do_with_length_stay():
    rng = np.random.default_rng(2)
    result = rng.choice([-1.0, 1.0], 600, p=[0.3, 0.7])
    found = length_controlled(result, rng.normal(0, 20, 600), seed=0)
    assert found["length_controlled_net"] == pytest.approx(result.mean(), abs=0.03)


def test_ratings_are_those_of_bradley_and_terry():
    """Two models, 3 wins to 1: 400 log10(3) points apart."""
    found = bradley_terry(["a", "b"], lambda one, other: np.array([-1.0, -1, -1, 1]))
    assert found["a"] - found["b"] == pytest.approx(400 * np.log10(3), rel=0.01)
    assert found["a"] + found["b"] == pytest.approx(0)


def test_ratings_order_three_models():
    strength = {"low": 0.0, "middle": 1.0, "high": 2.0}
    rng = np.random.default_rng(0)

    def result(one, other):
        odds = 1 / (1 + np.exp(strength[other] - strength[one]))
        return np.where(rng.random(2000) < odds, 1.0, -1.0)

    found = bradley_terry(list(strength), result)
    gap = 400 / np.log(10)
    assert found["high"] - found["middle"] == pytest.approx(gap, rel=0.15)
    assert found["middle"] - found["low"] == pytest.approx(gap, rel=0.15)


def test_a_mean_and_its_interval():
    found = mean_with_interval(np.array([1.0, 2.0, 3.0, 4.0]), seed=0)
    assert found["mean"] == 2.5 and found["low"] < 2.5 < found["high"]
