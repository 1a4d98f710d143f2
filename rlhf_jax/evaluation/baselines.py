"""Baselines that a reward model must beat: length, and bags of words or n-grams."""

import functools
from collections.abc import Iterator, Sequence

import numpy as np
from absl import logging
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold

from rlhf_jax.data.encoding import Pair

FOLDS = 5


def rival_margins(train: Sequence[Pair], test: Sequence[Pair]) -> dict[str, np.ndarray]:
    """Return the margins [N] of the baselines on the test pairs: always the longer
    response, always the shorter, and, where there are enough training prompts, a bag of
    words and a bag of words and bigrams."""
    longer = np.array([len(chosen) - len(rejected) for _, chosen, rejected in test])
    rivals = {"always_longer": longer, "always_shorter": -longer}
    for longest, name in enumerate(("bag_of_words", "bag_of_bigrams"), start=1):
        margins = bag_of_words_margins(train, test, longest=longest)
        if margins is not None:
            rivals[name] = margins
    return rivals


def bag_of_words_margins(
    train: Sequence[Pair], test: Sequence[Pair], *, longest: int = 1
) -> np.ndarray | None:
    """Return the margins [N] of a logistic regression on how often each token occurs in
    a response, None with fewer training prompts than folds.

    The regularisation is chosen by cross-validation on the training pairs, split by
    prompt.

    Args:
        longest: the length of the longest n-grams that are counted; 2 counts tokens and
            bigrams.
    """
    prompts = [tuple(prompt) for prompt, _, _ in train]
    if len(set(prompts)) < FOLDS:
        logging.warning("No bag-of-words baseline: fewer than %d prompts.", FOLDS)
        return None
    examples, others = _count_differences(train, test, longest)
    # A pair in reverse order is the opposite example: every second pair is reversed,
    # and there is no intercept.
    sign = np.where(np.arange(len(train)) % 2, 1.0, -1.0)
    search = GridSearchCV(
        LogisticRegression(fit_intercept=False, max_iter=1000),
        {"C": np.logspace(-4, 1, 6)},
        cv=GroupKFold(FOLDS),
    )
    groups = [hash(prompt) for prompt in prompts]
    search.fit(sparse.diags_array(sign) @ examples, sign, groups=groups)
    return search.decision_function(others)


def _count_differences(
    train: Sequence[Pair], test: Sequence[Pair], longest: int
) -> list[sparse.csr_matrix]:
    """Return the counts of chosen minus those of rejected, for the training and the
    test pairs: int [pairs, n-grams]. The n-grams are those of the training pairs."""
    counter = CountVectorizer(analyzer=functools.partial(_grams, longest=longest))
    counter.fit(response for _, *pair in train for response in pair)
    return [
        counter.transform(chosen for _, chosen, _ in pairs)
        - counter.transform(rejected for _, _, rejected in pairs)
        for pairs in (train, test)
    ]


def _grams(tokens: Sequence[int], longest: int) -> Iterator[tuple[int, ...]]:
    """Yield the n-grams of a response for n from 1 to `longest`."""
    for size in range(1, longest + 1):
        yield from zip(*(tokens[i:] for i in range(size)), strict=False)
