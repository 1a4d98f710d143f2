"""Signs of over-optimisation: a policy gains by the score that it learns from, and
loses by a judge that nothing is trained against.

Gao, Schulman and Hilton (2023), "Scaling Laws for Reward Model Overoptimization", arXiv
2210.10760: the score trained against goes on rising while the true one falls. Letters:
E evaluations, N prompts, the same at each evaluation.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import t as students_t

from rlhf_jax.rewards.stated import SENTENCE_END

OPENING_WORDS = 3  # the words of an opening
OPENINGS = 3  # the number of openings that are counted
# The probability at an evaluation that a judge whose opinion has not changed is taken
# for one that falls; at the second evaluation the fall must be of two standard errors.
FALSE_ALARMS = 0.025

# A word, or a character of a script that writes no spaces between words.
_UNSPACED = r"\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


class Fall(NamedTuple):
    """The fall of the judge's mean score since its best evaluation."""

    best: int  # the evaluation with the highest mean of the judge's scores
    judge: float  # by how much the judge's mean is lower now
    errors: float  # `judge` in standard errors of the paired difference
    score: float  # by how much the mean of the score learned from is higher now
    is_over_optimised: bool  # the judge fell beyond its noise, `score` is not < 0


def standardised(scores: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return scores in standard deviations of the reference's scores above their mean;
    without such a deviation, the scores minus that mean.

    Args:
        scores: float [...].
        reference: float [N], the scores of the reference policy's answers.
    """
    reference = np.asarray(reference, np.float64)
    return (scores - reference.mean()) / (reference.std() or 1.0)


def fall_of_judge(scores: np.ndarray, judged: np.ndarray) -> Fall | None:
    """Compare the last evaluation with the judge's best one before it; return None
    without an earlier evaluation, or with one prompt, which has no noise to compare
    with.

    The judge has fallen where the mean of the paired differences over prompts is above
    zero by a one-sided t-test. Its level is `FALSE_ALARMS` divided by the number of
    pairs among the evaluations so far, E (E - 1) / 2 (Bonferroni), because the best of
    several evaluations is too high by chance: a limit of two standard errors would warn
    in half of the runs of 20 evaluations whose judge does not change.

    Args:
        scores: float [E, N], the scores that the policy learns from.
        judged: float [E, N], the judge's scores of the same answers.
    """
    scores, judged = np.asarray(scores, np.float64), np.asarray(judged, np.float64)
    evaluations, prompts = judged.shape
    if evaluations < 2 or prompts < 2:
        return None
    best = int(judged[:-1].mean(axis=1).argmax())
    fall = judged[best] - judged[-1]
    mean, error = fall.mean(), fall.std(ddof=1) / np.sqrt(prompts)
    # Equal differences have no error but that of rounding.
    errors = mean / max(error, 1e-9 * abs(mean)) if mean else 0.0
    pairs = evaluations * (evaluations - 1) / 2
    limit = students_t.isf(FALSE_ALARMS / pairs, prompts - 1)
    rise = float(scores[-1].mean() - scores[best].mean())
    is_over_optimised = bool(errors > limit and rise >= 0)
    return Fall(best, float(mean), float(errors), rise, is_over_optimised)


def common_openings(answers: Sequence[str]) -> float:
    """Return the share of answers that begin with one of the three commonest openings,
    which are their first three words (or characters, in Chinese and Japanese) whatever
    the case; 0 if no two answers begin alike. Answers without words begin alike."""
    openings = Counter(tuple(_words(answer)[:OPENING_WORDS]) for answer in answers)
    shared = sorted((n for n in openings.values() if n > 1), reverse=True)
    return sum(shared[:OPENINGS]) / max(len(answers), 1)


def repeated_sentences(answer: str) -> float:
    """Return the share of an answer's sentences that stood before in it, whatever their
    case and punctuation; 0 for an empty answer."""
    parts = map(_words, SENTENCE_END.split(answer))
    sentences = [tuple(words) for words in parts if words]
    return 1 - len(set(sentences)) / len(sentences) if sentences else 0.0


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())
