"""Baselines that a reward model must beat: length, and a bag of words."""

from collections.abc import Sequence

import numpy as np
from absl import logging
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold

from rlhf_jax.data.encoding import Pair

FOLDS = 5


def rival_margins(train: Sequence[Pair], test: Sequence[Pair]) -> dict[str, np.ndarray]:
    """Return the margins [N] of the baselines on the test pairs: always the longer
    response, always the shorter, and a bag of words where there are enough training
    prompts."""
    longer = np.array([len(chosen) - len(rejected) for _, chosen, rejected in test])
    rivals = {"always_longer": longer, "always_shorter": -longer}
    words = bag_of_words_margins(train, test)
    return rivals if words is None else rivals | {"bag_of_words": words}


def bag_of_words_margins(
    train: Sequence[Pair], test: Sequence[Pair]
) -> np.ndarray | None:
    """Return the margins [N] of a logistic regression on how often each token occurs in
    a response, None with fewer training prompts than folds.

    The regularisation is chosen by cross-validation on the training pairs, split by
    prompt.
    """
    prompts = [tuple(prompt) for prompt, _, _ in train]
    if len(set(prompts)) < FOLDS:
        logging.warning("No bag-of-words baseline: fewer than %d prompts.", FOLDS)
        return None
    width = 1 + max(max(map(max, pair)) for pair in (*train, *test))
    # A pair in reverse order is the opposite example: every second pair is reversed,
    # and there is no intercept.
    sign = np.where(np.arange(len(train)) % 2, 1.0, -1.0)
    search = GridSearchCV(
        LogisticRegression(fit_intercept=False, max_iter=1000),
        {"C": np.logspace(-4, 1, 6)},
        cv=GroupKFold(FOLDS),
    )
    examples = sparse.diags_array(sign) @ _count_differences(train, width)
    search.fit(examples, sign, groups=[hash(prompt) for prompt in prompts])
    return search.decision_function(_count_differences(test, width))


def _count_differences(pairs: Sequence[Pair], width: int) -> sparse.csr_array:
    """Return the token counts of chosen minus those of rejected: float [pairs,
    vocabulary]."""
    rows, columns, values = [], [], []
    for i, (_, chosen, rejected) in enumerate(pairs):
        rows += [i] * (len(chosen) + len(rejected))
        columns += chosen + rejected
        values += [1.0] * len(chosen) + [-1.0] * len(rejected)
    return sparse.coo_array((values, (rows, columns)), (len(pairs), width)).tocsr()
