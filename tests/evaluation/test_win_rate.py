import numpy as np
import pytest

from rlhf_jax.evaluation.win_rate import (
    bradley_terry,
    by_group,
    interval,
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


def test_no_verdict_is_left_out():
    found = win_rate(np.array([1.0, np.nan, -1.0, 0.0]), seed=0)
    assert found["prompts"] == found["n"] == 3 and found["win"] == pytest.approx(1 / 3)
    assert by_group(np.array([1.0, np.nan]), ["a", "b"], seed=0).keys() == {"a"}
    with pytest.raises(ValueError, match="no verdict on any of 2 prompts"):
        win_rate(np.array([np.nan, np.nan]), seed=0)


def coverage(draw, truth, worlds=400, **fields) -> float:
    """How often the interval of the mean of `draw(rng)` holds the truth."""
    rng, covered = np.random.default_rng(0), []
    for seed in range(worlds):
        x = draw(rng)
        low, high = interval(
            lambda rows, x=x: x[rows].mean(), len(x), seed=seed, resamples=500, **fields
        )
        covered.append(low <= truth <= high)
    return float(np.mean(covered))


def test_the_interval_covers_the_truth_nineteen_times_in_twenty():
    def draw(rng):
        return rng.choice([-1.0, 0.0, 1.0], 200, p=[0.2, 0.3, 0.5])

    assert 0.93 <= coverage(draw, 0.3) <= 0.97


def test_results_of_one_prompt_are_drawn_together():
    """Four results each of 100 prompts that mostly agree: as independent results their
    interval would be half as wide, and miss often."""
    prompts = np.repeat(np.arange(100), 4)

    def draw(rng):
        liking = rng.normal(0.3, 1.0, 100)[prompts]
        return liking + rng.normal(0, 0.3, 400)

    assert 0.92 <= coverage(draw, 0.3, worlds=200, prompts=list(prompts)) <= 0.97
    assert coverage(draw, 0.3, worlds=60) < 0.8


def test_the_interval_of_a_mean_knows_which_values_share_a_prompt():
    """As above, through what an evaluation reports, some values missing."""
    prompts, covered = np.repeat(np.arange(50), 4), {True: [], False: []}
    rng = np.random.default_rng(0)
    for seed in range(60):
        values = rng.normal(0.3, 1.0, 50)[prompts] + rng.normal(0, 0.3, 200)
        values[rng.random(200) < 0.1] = np.nan
        for known in covered:
            given = {"prompts": prompts.tolist()} if known else {}
            found = mean_with_interval(values, seed=seed, **given)
            assert found["n"] == np.isfinite(values).sum()
            covered[known].append(found["low"] <= 0.3 <= found["high"])
    assert np.mean(covered[True]) >= 0.88 and np.mean(covered[False]) < 0.8


@pytest.mark.slow
def test_intervals_of_fits_cover_the_truth_nineteen_times_in_twenty():
    """At equal length, and of ratings: 400 worlds of 400 prompts each."""
    rng = np.random.default_rng(0)
    strength = {"low": -0.4, "middle": 0.0, "high": 0.4}
    covered = {"length-controlled": []} | {name: [] for name in strength}

    def drawn(odds):  # logit -> win or loss
        return np.where(rng.logistic(size=400) < odds, 1.0, -1.0)

    for seed in range(400):
        difference = rng.normal(10, 20, 400)
        result = drawn(0.4 + 0.8 * np.tanh(difference / 20))
        found = length_controlled(result, difference, seed=seed)
        low, high = (found[f"length_controlled_net_{end}"] for end in ("low", "high"))
        covered["length-controlled"].append(low <= np.tanh(0.2) <= high)
        ratings = bradley_terry(
            list(strength),
            lambda one, other: drawn(strength[one] - strength[other]),
            seed=seed,
        )
        for name, truth in strength.items():
            low, high = ratings[name]["low"], ratings[name]["high"]
            covered[name].append(low <= truth * 400 / np.log(10) <= high)
    shares = {name: float(np.mean(hits)) for name, hits in covered.items()}
    assert all(0.93 <= share <= 0.97 for share in shares.values()), shares


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
    result = np.array([-1.0, -1, -1, 1, np.nan])  # of b against a
    found = bradley_terry(["a", "b"], lambda one, other: result, seed=0)
    a, b = (found[name]["rating"] for name in "ab")
    assert a - b == pytest.approx(400 * np.log10(3), rel=0.01)
    assert a + b == pytest.approx(0)
    assert found["a"]["low"] < a < found["a"]["high"]


def test_ratings_order_three_models():
    strength = {"low": 0.0, "middle": 1.0, "high": 2.0}
    rng = np.random.default_rng(0)

    def result(one, other):
        odds = 1 / (1 + np.exp(strength[other] - strength[one]))
        return np.where(rng.random(2000) < odds, 1.0, -1.0)

    found = bradley_terry(list(strength), result, seed=0)
    low, middle, high = (found[name]["rating"] for name in strength)
    gap = 400 / np.log(10)
    assert high - middle == pytest.approx(gap, rel=0.15)
    assert middle - low == pytest.approx(gap, rel=0.15)
    # 2,000 prompts tell them apart.
    assert found["low"]["high"] < found["middle"]["low"]


def test_a_mean_and_its_interval():
    found = mean_with_interval(np.array([1.0, 2.0, 3.0, 4.0]), seed=0)
    assert found["mean"] == 2.5 and found["low"] < 2.5 < found["high"]
