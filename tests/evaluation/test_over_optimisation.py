"""Signs of over-optimisation, by hand, and the rule on curves of known shape."""

import numpy as np
import pytest

from rlhf_jax.evaluation import over_optimisation as signs


@pytest.mark.parametrize(
    ("answers", "share"),
    [
        ([], 0),
        (["", "...", "An answer"], 2 / 3),
        (["One answer alone."], 0),
        (["Sure! Here is one.", "sure, here IS another", "No."], 2 / 3),
        (["Yes.", "Yes", "yes!", "Yes, sir."], 3 / 4),
        (["当然可以，这是", "当然可，是", "不可以"], 2 / 3),
        # Four openings, each shared by two answers: three of them count.
        (2 * ["a b c d", "b b c d", "c b c d", "d b c d"], 6 / 8),
    ],
)
def test_the_share_of_the_commonest_openings(answers, share):
    assert signs.common_openings(answers) == pytest.approx(share)


@pytest.mark.parametrize(
    ("answer", "share"),
    [
        ("", 0),
        ("...", 0),
        ("One sentence", 0),
        ("I am sure. I am SURE! It is 3.5 or 3.5.", 1 / 3),
        ("No.\nno\nNo no.", 1 / 3),
        ("你好。你好！再见。你好。", 2 / 4),
    ],
)
def test_the_share_of_repeated_sentences(answer, share):
    assert signs.repeated_sentences(answer) == pytest.approx(share)


def test_scores_in_units_of_the_reference():
    of_reference = np.array([1.0, 3.0])  # mean 2, standard deviation 1
    np.testing.assert_allclose(
        signs.standardised(np.array([[1, 3], [2, 5]]), of_reference), [[-1, 1], [0, 3]]
    )
    alike = np.full(3, 2.0)
    np.testing.assert_array_equal(signs.standardised(alike + 0.5, alike), [0.5] * 3)


# Differences of the judge's scores with mean 1 and standard deviation sqrt(2).
FALL = np.array([1.0, 3, -1, 1, 1])


def test_the_fall_since_the_best_evaluation_in_standard_errors():
    judged = np.stack([0 * FALL, 0 * FALL + 2, 0 * FALL + 1, 2 - FALL])
    scores = np.stack([0 * FALL, 0 * FALL + 1, 0 * FALL + 9, 0 * FALL + 1.5])
    fall = signs.fall_of_judge(scores, judged)
    assert fall[:4] == pytest.approx((1, 1, 1 / np.sqrt(2 / 5), 0.5))
    # 1.58 standard errors are below the 5.2 of Student's t with 4 degrees of freedom.
    assert fall.is_over_optimised is False
    rise = signs.fall_of_judge(scores[:2], judged[:2])
    assert (rise.best, rise.judge, rise.is_over_optimised) == (0, -2, False)


@pytest.mark.parametrize(
    ("prompts", "rise", "evaluations", "expected"),
    [
        (80, 1.0, 1, True),  # 7 standard errors
        (80, 0.0, 1, True),  # the score has not fallen
        (80, -0.1, 1, False),  # the score falls too: the policy is merely worse
        (5, 1.0, 1, False),  # 1.6 standard errors, below the 2.8 for 5 prompts
        (10, 1.0, 1, True),  # 2.37, above the 2.26 for 10 ...
        (10, 1.0, 3, False),  # ... and below the 3.4 for three evaluations before
    ],
)
def test_the_judge_must_fall_beyond_its_noise_while_the_score_does_not(
    prompts, rise, evaluations, expected
):
    fall = np.resize(FALL, prompts)
    before = np.zeros((evaluations, prompts))
    judged = np.concatenate([before, before[:1] - fall])
    scores = np.concatenate([before, before[:1] + rise])
    assert signs.fall_of_judge(scores, judged).is_over_optimised is expected


def test_one_evaluation_or_one_prompt_shows_nothing():
    assert signs.fall_of_judge(np.zeros((1, 8)), np.zeros((1, 8))) is None
    assert signs.fall_of_judge(np.zeros((3, 1)), np.array([[1], [1], [0]])) is None


@pytest.mark.parametrize(
    ("fall", "errors", "expected"), [(0, 0, False), (0.1, 1e9, True)]
)
def test_equal_differences_have_no_noise(fall, errors, expected):
    judged = np.stack([np.arange(4.0), np.arange(4.0) - fall])
    found = signs.fall_of_judge(np.zeros((2, 4)), judged)
    assert found.errors == pytest.approx(errors)
    assert found.is_over_optimised is expected


def test_a_judge_that_wobbles_seldom_warns_and_one_that_falls_soon_does():
    """Runs of 20 evaluations of 64 prompts: the score rises by one standard deviation
    of the noise, and the judge stays, or rises by a half and then falls by one."""
    rng, runs, evaluations = np.random.default_rng(0), 60, 20
    rise = np.linspace(0, 1, evaluations)[:, None]
    hump = np.interp(rise, [0, 0.4, 1], [0, 0.5, -0.5])

    def first_warning(scores, judged, warns=lambda fall: fall.is_over_optimised):
        for count in range(2, evaluations + 1):
            if warns(signs.fall_of_judge(scores[:count], judged[:count])):
                return count
        return np.inf

    def two_errors(fall):
        return fall.errors > 2 and fall.score >= 0

    warnings = {"stays": [], "two errors": [], "falls": []}
    for _ in range(runs):
        noise, of_judge, of_score = rng.normal(size=(3, evaluations, 64))
        scores, judged = noise + of_score / 2 + rise, noise + of_judge / 2
        warnings["stays"].append(first_warning(scores, judged))
        warnings["two errors"].append(first_warning(scores, judged, two_errors))
        warnings["falls"].append(first_warning(scores, judged + hump))
    assert np.isfinite(warnings["stays"]).mean() < 0.05
    assert np.isfinite(warnings["two errors"]).mean() > 0.3
    assert np.isfinite(warnings["falls"]).mean() > 0.95
    assert 10 < np.median(warnings["falls"]) < 17
