"""Cleaning of comparisons (ChatGLM-RLHF, arXiv 2404.00934, section 1).

Each step works on the comparisons that the earlier steps left:

1. Drop comparisons with an empty response, or with two responses of the same text.
2. Drop every vote of annotators who fail known answers or contradict their own repeats
   (annotator_quality.py).
3. Drop the answers to known-answer tasks, which are tests and not data.
4. Merge an annotator's votes on one pair into one, by majority. Each vote without an
   annotator counts as another person's.
5. Merge the annotators' votes on one pair into one, by majority: the pair is a tie if
   most votes are ties; otherwise ties abstain, and a pair with equally many votes on
   both sides is dropped.
6. Drop every comparison in a cycle, that is, with both responses in one strongly
   connected component of the graph "better than".

Each input comparison is kept or dropped for one reason. The remaining pairs and their
verdicts do not depend on the order of the comparisons; the first comparison with a
pair's verdict represents the pair.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from rlhf_jax.data.cleaning.annotator_quality import Annotators, Limits, judge
from rlhf_jax.data.cleaning.votes import UNNAMED, Votes
from rlhf_jax.data.records import Comparison

REASONS = (
    "",  # kept
    "empty response",
    "identical responses",
    "careless annotator",
    "known-answer task",
    "own repeat, merged",
    "contradicts own repeat",
    "tie",
    "annotators disagree",
    "outvoted",
    "same verdict, merged",
    "cycle",
)

_SPLIT = 2  # verdict of a group without a majority, besides 1, -1 and 0


class Cleaning(NamedTuple):
    """The outcome of cleaning for N comparisons."""

    reason: np.ndarray  # int8 [N]: index into REASONS; 0 if kept
    voted: (
        np.ndarray
    )  # bool [N]: True if counted in step 5, once per annotator and pair
    annotators: Annotators

    def dropped(self) -> Counter:
        """Count the dropped comparisons by reason."""
        counts = np.bincount(self.reason, minlength=len(REASONS)).tolist()
        return +Counter(dict(zip(REASONS[1:], counts[1:], strict=True)))


def clean(votes: Votes, limits: Limits) -> Cleaning:
    """Run the six steps on columns, since the comparisons' texts may exceed memory.

    Cleaning is idempotent: another run on the kept comparisons changes nothing.
    """
    count = len(votes.pair)
    reason = np.zeros(count, np.int8)

    def drop(rows: np.ndarray, why: str) -> None:
        reason[rows] = REASONS.index(why)

    # Steps 1 to 3.
    drop(votes.one == votes.other, "identical responses")
    drop(votes.empty, "empty response")
    annotators = judge(votes, reason == 0, limits)
    careless = np.append(annotators.careless, False)[votes.annotator]  # last: UNNAMED
    drop((reason == 0) & careless, "careless annotator")
    drop((reason == 0) & (votes.known != 0), "known-answer task")

    # Step 4.
    rows = np.flatnonzero(reason == 0)
    pair, verdict = votes.pair[rows], votes.verdict[rows]
    annotator, people = votes.annotator[rows], len(votes.annotators)
    voter = np.where(annotator == UNNAMED, people + rows, annotator)
    outcome, stands = _majority(pair * (people + count) + voter, verdict)
    drop(rows[verdict == outcome], "own repeat, merged")
    drop(rows[verdict != outcome], "contradicts own repeat")
    rows, pair, verdict = rows[stands], pair[stands], verdict[stands]
    voted = np.zeros(count, bool)
    voted[rows] = True

    # Step 5.
    outcome, stands = _majority(pair, verdict)
    drop(rows, "same verdict, merged")
    drop(rows[verdict == -outcome], "outvoted")
    drop(rows[outcome == _SPLIT], "annotators disagree")
    drop(rows[(outcome == 0) | (verdict == 0)], "tie")
    rows = rows[stands & (outcome != 0)]

    # Step 6.
    better, worse = chosen_and_rejected(votes, rows)
    drop(rows, "")
    drop(rows[in_cycle(better, worse)], "cycle")
    return Cleaning(reason, voted, annotators)


def take(
    comparisons: Iterable[Comparison | None],
    keep: np.ndarray,
    votes: Votes,
    cleaning: Cleaning,
) -> Iterator[tuple[int, Comparison]]:
    """Yield the comparisons where `keep` (bool [N]) is True, with their numbers; the
    others may be None. If several annotators voted on a pair, `info["votes"]` lists the
    annotators for and against the preference and for a tie.

    Raises:
        ValueError: these are not the N comparisons from which the votes were read.
    """
    voters = np.flatnonzero(cleaning.voted)
    voters = voters[np.argsort(votes.pair[voters], kind="stable")]
    pairs, verdicts = votes.pair[voters], votes.verdict[voters].tolist()
    annotators = votes.annotator[voters].tolist()
    names = [*votes.annotators, ""]  # last: UNNAMED
    begins = np.searchsorted(pairs, votes.pair)
    ends = np.searchsorted(pairs, votes.pair, side="right")
    for row, (kept, comparison) in enumerate(zip(keep, comparisons, strict=True)):
        if not kept:
            continue
        if comparison is None:
            raise ValueError(f"Comparison {row} is kept, but was not read.")
        begin, end = begins[row], ends[row]
        if end - begin > 1:
            voters_of = {"for": [], "against": [], "tie": []}
            sides = {int(votes.verdict[row]): "for", 0: "tie"}
            for i in range(begin, end):
                side = sides.get(verdicts[i], "against")
                voters_of[side].append(names[annotators[i]])
            info = (comparison.info or {}) | {"votes": voters_of}
            comparison = dataclasses.replace(comparison, info=info)
        yield row, comparison


def chosen_and_rejected(votes: Votes, rows: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the numbers of the better and the worse response of votes without ties."""
    one, other = votes.one[rows], votes.other[rows]
    first = votes.verdict[rows] > 0
    return np.where(first, one, other), np.where(first, other, one)


def in_cycle(better: np.ndarray, worse: np.ndarray) -> np.ndarray:
    """Find the edges better -> worse (numbers of responses) in a cycle: bool [edges].

    One graph holds all prompts: responses to different prompts have different numbers.
    """
    nodes = max(better.max(initial=-1), worse.max(initial=-1)) + 1
    if nodes == 0:
        return np.zeros(0, bool)
    edges = coo_array((np.ones(len(better)), (better, worse)), (nodes, nodes))
    _, component = connected_components(edges, directed=True, connection="strong")
    return component[better] == component[worse]


def _majority(group: np.ndarray, verdict: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each vote the outcome of its group (1, -1, 0 for a tie, or _SPLIT),
    and whether the vote is the first of its group with that outcome."""
    _, number = np.unique(group, return_inverse=True)
    balance = np.bincount(number, verdict)
    mostly_ties = np.bincount(number, verdict == 0) * 2 > np.bincount(number)
    decided = np.where(balance == 0, _SPLIT, np.sign(balance))
    outcome = np.where(mostly_ties, 0, decided).astype(int)[number]
    agrees = np.flatnonzero(verdict == outcome)
    stands = np.zeros(len(group), bool)
    stands[agrees[np.unique(number[agrees], return_index=True)[1]]] = True
    return outcome, stands
