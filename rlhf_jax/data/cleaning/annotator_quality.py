"""Annotator quality: agreement with known answers, with an annotator's own repeats and
with the other annotators; preference for the first shown and for the longer response.

An annotator is removed if certainly bad, not if unlucky: when the whole Clopper-Pearson
interval of the share of right known answers lies below `min_known_right`, or the whole
interval of the share of contradicted repeats above `max_contradicted`. Few answers give
wide intervals, so no annotator is removed on little evidence, nor for disagreement
alone: the majority may be wrong. The paper (ChatGLM-RLHF, arXiv 2404.00934) does not
describe its criterion; this one is our choice.
"""

import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.stats import beta
from sklearn.metrics import cohen_kappa_score

from rlhf_jax.data.cleaning.votes import UNNAMED, Votes


@dataclass(frozen=True)
class Limits:
    """The limits beyond which an annotator is removed."""

    min_known_right: float  # smallest share of known-answer tasks answered right
    max_contradicted: float  # largest share of own repeats that are contradicted
    confidence: float  # confidence of the two-sided intervals; 0.9 errs 1 in 20 a side

    def __post_init__(self):
        for name, value in vars(self).items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value} must be from 0 to 1.")


class Share(NamedTuple):
    """The share `count` / `of` of each annotator, with its confidence interval."""

    count: np.ndarray  # int [A]: number of hits
    of: np.ndarray  # int [A]: number of trials
    low: np.ndarray  # float [A]: lower end of the interval, 0 without trials
    high: np.ndarray  # float [A]: upper end of the interval, 1 without trials


class Annotators(NamedTuple):
    """The statistics of the votes of A named annotators."""

    names: list[str]
    votes: np.ndarray  # int [A]: number of votes
    known_right: Share  # share of right known-answer tasks; a tie is wrong
    contradicted: Share  # share of own repeats that are contradicted, without ties
    first_chosen: Share  # share of non-tie votes for the response shown first
    longer_chosen: Share  # share of non-tie votes for the longer of unequal responses
    kappa: np.ndarray  # float [A]: Cohen's, with the others' majority; nan if alone
    careless: np.ndarray  # bool [A]: True if removed by a limit


def judge(votes: Votes, usable: np.ndarray, limits: Limits) -> Annotators:
    """Judge every annotator by their `usable` votes (bool [N])."""
    rows = np.flatnonzero(usable & (votes.annotator != UNNAMED))
    who, verdict = votes.annotator[rows], votes.verdict[rows]
    known = votes.known[rows]
    decided = verdict != 0
    shown_first = votes.shown_first[rows]
    lengths = votes.lengths
    longer = np.sign(lengths[votes.one[rows]] - lengths[votes.other[rows]])

    def share(hit, among) -> Share:
        size = len(votes.annotators)
        count = np.bincount(who[hit & among], minlength=size)
        return _share(count, np.bincount(who[among], minlength=size), limits.confidence)

    known_right = share(verdict == known, known != 0)
    contradicted = _contradicted(votes, rows[decided], limits.confidence)
    out = known_right.high < limits.min_known_right
    out |= contradicted.low > limits.max_contradicted
    return Annotators(
        names=votes.annotators,
        votes=np.bincount(who, minlength=len(votes.annotators)),
        known_right=known_right,
        contradicted=contradicted,
        first_chosen=share(verdict == shown_first, decided & (shown_first != 0)),
        longer_chosen=share(verdict == longer, decided & (longer != 0)),
        kappa=_kappas(votes, rows),
        careless=out,
    )


def agreement(votes: Votes, usable: np.ndarray) -> float:
    """Compute Cohen's kappa of every usable named vote with the majority of the other
    annotators of the same pair; nan if no two annotators share a pair."""
    rows = np.flatnonzero(usable & (votes.annotator != UNNAMED))
    mine, others, _ = _beside_others(votes, rows)
    return _kappa(mine, others)


def alpha(votes: Votes, usable: np.ndarray) -> float:
    """Compute Krippendorff's nominal alpha of the usable named votes, of each annotator
    the first on a pair; nan if no two annotators share a pair or all votes are equal.

    1 is perfect agreement and 0 that of chance. Unlike `agreement`, alpha counts every
    two annotators of a pair, also where the others are split.
    """
    rows = np.flatnonzero(usable & (votes.annotator != UNNAMED))
    _, first = _groups(votes.pair[rows] * len(votes.annotators) + votes.annotator[rows])
    return nominal_alpha(votes.pair[rows][first], votes.verdict[rows][first])


def nominal_alpha(unit: np.ndarray, value: np.ndarray) -> float:
    """Compute Krippendorff's alpha of N nominal values, each an annotator's of a unit
    ("Content Analysis", 4th edition, chapter 12); nan without variation or overlap.

    Args:
        unit: int [N], the numbers of the units.
        value: int [N], the annotators' values; of a unit with one value none counts.
    """
    unit, value = (np.unique(x, return_inverse=True)[1] for x in (unit, value))
    kinds = value.max(initial=0) + 1
    shape = (unit.max(initial=-1) + 1, kinds)
    counts = np.bincount(unit * kinds + value, minlength=shape[0] * kinds)
    counts = counts.reshape(shape).astype(float)
    counts = counts[counts.sum(axis=1) > 1]
    size, totals = counts.sum(axis=1), counts.sum(axis=0)
    total = totals.sum()
    observed = ((size**2 - (counts**2).sum(axis=1)) / (size - 1)).sum()
    expected = (total**2 - (totals**2).sum()) / max(total - 1, 1)
    return 1 - observed / expected if expected else float("nan")


def _contradicted(votes: Votes, rows: np.ndarray, confidence: float) -> Share:
    """Return the share of contradicted repeats of each annotator.

    An annotator's n votes on one pair have n - 1 repeats. The contradicted share of
    these repeats is that of all pairs of the n votes: f votes for a and g votes for b
    count as 2 f g / (f + g) contradicted repeats.
    """
    people = len(votes.annotators)
    group, first = _groups(votes.pair[rows] * people + votes.annotator[rows])
    for_one = np.bincount(group, votes.verdict[rows] > 0)
    size = np.bincount(group)
    who = votes.annotator[rows][first]
    flips = np.bincount(who, 2 * for_one * (size - for_one) / size, people)
    repeats = np.bincount(who, size - 1, people)
    return _share(np.floor(flips + 1e-9).astype(int), repeats.astype(int), confidence)


def _kappas(votes: Votes, rows: np.ndarray) -> np.ndarray:
    mine, others, who = _beside_others(votes, rows)
    order = np.argsort(who, kind="stable")
    ends = np.cumsum(np.bincount(who, minlength=len(votes.annotators)))[:-1]
    each = zip(np.split(mine[order], ends), np.split(others[order], ends), strict=True)
    return np.array([_kappa(*votes_of) for votes_of in each][: len(votes.annotators)])


def _beside_others(votes: Votes, rows: np.ndarray):
    """Return (verdict, the others' majority, annotator) of the votes on pairs where
    other annotators voted and were not split."""
    people = len(votes.annotators)
    pair, who = votes.pair[rows], votes.annotator[rows]
    verdict = votes.verdict[rows].astype(int)
    own, _ = _groups(pair * people + who)

    def without_own(values):
        by_pair, by_own = np.bincount(pair, values), np.bincount(own, values)
        return by_pair[pair] - by_own[own]

    balance, decided = without_own(verdict), without_own(verdict != 0)
    ties = without_own(verdict == 0)
    clear = (balance != 0) | (ties > decided)
    return (
        verdict[clear],
        np.where(ties > decided, 0, np.sign(balance)).astype(int)[clear],
        who[clear],
    )


def _kappa(mine: np.ndarray, others: np.ndarray) -> float:
    if len(mine) == 0:
        return float("nan")
    with warnings.catch_warnings():  # votes of a single label give nan and a warning
        warnings.simplefilter("ignore")
        return float(cohen_kappa_score(mine, others, labels=[-1, 0, 1]))


def _groups(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number the distinct keys; return the number of every key, and the index at which
    each distinct key is first."""
    _, first, number = np.unique(keys, return_index=True, return_inverse=True)
    return number, first


def _share(count: np.ndarray, of: np.ndarray, confidence: float) -> Share:
    """Return the share with Clopper and Pearson's exact interval."""
    tail = (1 - confidence) / 2
    low = beta.ppf(tail, count, of - count + 1)  # nan for shares of 0 and 1
    high = beta.ppf(1 - tail, count + 1, of - count)
    return Share(
        count,
        of,
        np.where(count == 0, 0.0, low),
        np.where(count == of, 1.0, high),
    )
