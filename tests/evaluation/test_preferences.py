import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rlhf_jax.evaluation.calibration import reliability
from rlhf_jax.evaluation.intervals import mcnemar, pair_accuracy, wilson
from rlhf_jax.evaluation.preferences import (
    JudgedPairs,
    assess,
    correlations,
    headline,
)

RNG = np.random.default_rng(0)


def judged(count, lengths=None, qualities=None, intents=None):
    if lengths is None:
        lengths = RNG.integers(1, 90, (count, 2))
    intents = intents or [""] * count
    return JudgedPairs(list(range(count)), intents, np.array(lengths), qualities)


@given(st.integers(1, 300), st.floats(0, 1))
def test_the_interval_of_independent_pairs_is_wilsons(count, share):
    right = round(share * count)
    expected = stats.binomtest(right, count).proportion_ci(method="wilson")
    margins = np.r_[np.ones(right), -np.ones(count - right)]
    found = pair_accuracy(margins)
    assert found["accuracy"] == right / count
    np.testing.assert_allclose(
        [found["accuracy_low"], found["accuracy_high"]], expected, atol=1e-6
    )


def test_copies_of_a_pair_narrow_no_interval():
    """Each of 40 prompts four times, right or wrong together: worth 40 pairs."""
    margins = np.where(np.arange(40) < 28, 1.0, -1.0)
    once = pair_accuracy(margins, list(range(40)))
    copied = pair_accuracy(np.repeat(margins, 4), np.repeat(range(40), 4).tolist())
    assert copied["pairs"] == 160
    for name in ("accuracy", "accuracy_low", "accuracy_high"):
        np.testing.assert_allclose(copied[name], once[name])


def test_a_tie_is_half_right():
    assert pair_accuracy(np.array([0.0, 0.0, 1.0, -1.0]))["accuracy"] == 0.5


def test_accuracies_stand_by_group_and_beside_their_rivals():
    lengths = [[5, 5], [9, 4], [4, 9], [40, 10]]
    pairs = judged(4, lengths, intents=["sums", "sums", "", "poems"])
    scores = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    longer = pairs.lengths[:, 0] - pairs.lengths[:, 1]
    found = assess(scores, pairs, {"always_longer": longer})["accuracy"]
    assert {name: (x["pairs"], x["accuracy"]) for name, x in found.items()} == {
        "all": (4, 0.5),
        "intent: poems": (1, 0.0),
        "intent: sums": (2, 1.0),
        "length differs by 0": (1, 1.0),
        "length differs by 1-9": (2, 0.5),
        "length differs by 20-39": (1, 0.0),
        "chosen longer": (2, 0.5),
        "rejected longer": (1, 0.0),
    }
    assert found["all"]["always_longer"] == 0.625
    assert found["rejected longer"]["always_longer"] == 0.0


def test_a_score_that_is_length_correlates_fully_and_noise_does_not():
    lengths = RNG.integers(1, 90, (4000, 2))
    for kind in ("responses", "within_pairs"):
        np.testing.assert_allclose(correlations(lengths, lengths)[kind], 1)
        noise = RNG.normal(size=lengths.shape)
        assert abs(correlations(noise, lengths)[kind]) < 0.06


def test_what_prompts_do_to_both_cancels_inside_pairs():
    """Long prompts get long answers and high scores; the longer answer of two does
    not score higher."""
    prompt = RNG.normal(size=(4000, 1)) * 10
    lengths, scores = (prompt + RNG.normal(size=(4000, 2)) for _ in range(2))
    found = correlations(scores, lengths)
    assert found["responses"] > 0.9
    assert abs(found["within_pairs"]) < 0.06


def test_correlation_inside_pairs_ignores_which_response_is_called_chosen():
    scores, lengths = RNG.normal(size=(2, 50, 2))
    flip = RNG.random((50, 1)) < 0.5
    flipped = [np.where(flip, x[:, ::-1], x) for x in (scores, lengths)]
    for kind, value in correlations(scores, lengths).items():
        np.testing.assert_allclose(correlations(*flipped)[kind], value)


def test_constant_scores_correlate_with_nothing():
    found = correlations(np.zeros((5, 2)), RNG.normal(size=(5, 2)))
    assert found == {"responses": 0.0, "within_pairs": 0.0}


def test_agreement_with_the_truth_leaves_out_what_it_cannot_tell_apart():
    qualities = np.array([[2.0, 1.0], [1.0, 2.0], [3.0, 3.0]])
    scores = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    report = assess(scores, judged(3, qualities=qualities), {})
    assert (report["truth"]["pairs"], report["truth"]["accuracy"]) == (2, 0.5)
    numbers = headline(report)
    assert numbers["true_accuracy"] == 0.5
    assert numbers["accuracy"] == pytest.approx(2 / 3)
    for unknown in (None, np.ones((3, 2))):
        report = assess(scores, judged(3, qualities=unknown), {})
        assert "true_accuracy" not in headline(report)


def test_spread_is_told_for_both_sides():
    scores = np.array([[1.0, 0.0], [3.0, 0.0]])
    found = assess(scores, judged(2), {})["scores"]
    assert (found["chosen_mean"], found["chosen_std"]) == (2.0, 1.0)
    assert (found["rejected_mean"], found["rejected_std"]) == (0.0, 0.0)
    assert (found["mean"], found["margin"]) == (1.0, 2.0)
    np.testing.assert_allclose(found["std"], np.std([1, 3, 0, 0]))


def test_a_calibrated_scorer_has_no_calibration_error_and_a_boaster_has():
    """Preferences drawn from the very probabilities that the scores claim."""
    claimed = RNG.normal(size=40000) * 2
    margins = np.where(
        RNG.random(40000) < 1 / (1 + np.exp(-claimed)), claimed, -claimed
    )
    assert reliability(margins)["expected_error"] < 0.01
    assert reliability(margins * 4)["expected_error"] > 0.1


def test_calibration_of_hand_written_margins():
    # Confidence sigmoid(log 3) = 3/4; two of three are right: |2/3 - 3/4| = 1/12. A tie
    # is 1/2 sure and half right. Over four pairs: 3/4 * 1/12 = 1/16.
    margin = np.log(3.0)
    found = reliability(np.array([margin, margin, -margin, 0.0]))
    np.testing.assert_allclose(found["expected_error"], 1 / 16)
    assert [(b["pairs"], b["accuracy"]) for b in found["bins"]] == [
        (1, 0.5),
        (3, 2 / 3),
    ]


def test_the_intervals_of_calibration_know_which_pairs_share_a_prompt():
    margins = np.where(RNG.random(50) < 0.7, 2.0, -2.0)
    (alone,) = reliability(margins)["bins"]
    prompts = np.repeat(np.arange(50), 4).tolist()
    (copied,) = reliability(np.repeat(margins, 4), prompts)["bins"]
    for bound in ("accuracy_low", "accuracy_high"):
        assert copied[bound] == pytest.approx(alone[bound])


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_an_interval_holds_what_was_found_despite_rounding(share):
    for count in range(1, 200):
        low, high = wilson(share, count)
        assert low <= share <= high


def test_mcnemar_counts_only_the_pairs_on_which_two_models_differ():
    """Eight against two: 2 (1 + 10 + 45) / 2^10."""
    right = np.array([1.0] * 8 + [0.0] * 2 + [1.0] * 50 + [0.5] * 5)
    other = np.array([0.0] * 8 + [1.0] * 2 + [1.0] * 50 + [0.5] * 5)
    assert mcnemar(right, other) == mcnemar(other, right) == pytest.approx(112 / 1024)
    assert mcnemar(right, right) == 1.0
