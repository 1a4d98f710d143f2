"""What a reward model has to beat: scorers that know nothing of language."""

from collections.abc import Sequence

import numpy as np
from absl import logging
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold

from rlhf_jax.data.encoding import Pair

FOLDS = 5


def rival_margins(train: Sequence[Pair], test: Sequence[Pair]) -> dict[str, np.ndarray]:
    """Margins [N] of the baselines on test pairs: always the longer response, always
    the shorter, and bags of words where there are prompts enough to learn from."""
    longer = np.array([len(chosen) - len(rejected) for _, chosen, rejected in test])
    rivals = {"always_longer": longer, "always_shorter": -longer}
    words = bag_of_words_margins(train, test)
    return rivals if words is None else rivals | {"bag_of_words": words}


def bag_of_words_margins(
    train: Sequence[Pair], test: Sequence[Pair]
) -> np.ndarray | None:
    """Margins [N] of a logistic regression on how often each token occurs in a
    response; its regularisation is chosen on the training pairs, by prompt.

    None with fewer training prompts than folds.
    """
    prompts = [tuple(prompt) for prompt, _, _ in train]
    if len(set(prompts)) < FOLDS:
        logging.warning("No bag-of-words baseline: fewer than %d prompts.", FOLDS)
        return None
    width = 1 + max(max(map(max, pair)) for pair in (*train, *test))
    # A pair in the other order is the opposite example: half of them are turned round,
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
    """Tokens of chosen less tokens of rejected: float [pairs, vocabulary]."""
    rows, columns, values = [], [], []
    for i, (_, chosen, rejected) in enumerate(pairs):
        rows += [i] * (len(chosen) + len(rejected))
        columns += chosen + rejected
        values += [1.0] * len(chosen) + [-1.0] * len(rejected)
    return sparse.coo_array((values, (rows, columns)), (len(pairs), width)).tocsr()
