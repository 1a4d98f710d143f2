"""Rules that choose pairs among a prompt's scored responses, on arrays.

Every rule takes scores [P, K] of K responses to each of P prompts and returns pairs
int [N, 3] of (prompt, chosen, rejected); the chosen response has the higher score.
"""

import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

RULES = ("ranks", "random", "every")

Scores = Float[np.ndarray, "P K"]
Pairs = Int[np.ndarray, "N 3"]


def make_pairs(
    scores: Scores, rule: str, *, chosen_rank: int, rejected_rank: int, seed: int
) -> Pairs:
    """Return the pairs of the rule named `rule`."""
    if rule == "ranks":
        return pair_ranks(scores, chosen_rank, rejected_rank)
    if rule == "random":
        return pair_at_random(scores, np.random.default_rng(seed))
    if rule == "every":
        return pair_all(scores)
    raise ValueError(f"{rule=} must be one of {', '.join(RULES)}.")


def pair_ranks(scores: Scores, chosen_rank: int, rejected_rank: int) -> Pairs:
    """Pair one rank with another: 0 is the best, -1 the worst, K // 2 the median."""
    count = scores.shape[1]
    ranks = [
        rank + count if rank < 0 else rank for rank in (chosen_rank, rejected_rank)
    ]
    if not 0 <= ranks[0] < ranks[1] < count:
        raise ValueError(
            f"{chosen_rank=} must come before {rejected_rank=}, and both be ranks of "
            f"{count} responses."
        )
    by_rank = np.argsort(-scores, axis=1, kind="stable")
    return np.column_stack([np.arange(len(scores)), by_rank[:, ranks]])


def pair_at_random(scores: Scores, rng: np.random.Generator) -> Pairs:
    """Pair two different random responses to each prompt."""
    num_prompts, count = scores.shape
    picked = [(p, *rng.permutation(count)[:2]) for p in range(num_prompts)]
    return _better_first(np.array(picked), scores)


def pair_all(scores: Scores) -> Pairs:
    """Pair every two responses to each prompt, in the prompts' order."""
    num_prompts, count = scores.shape
    pairs = itertools.product(
        range(num_prompts), itertools.combinations(range(count), 2)
    )
    return _better_first(np.array([(p, *two) for p, two in pairs]), scores)


def usable_pairs(
    pairs: Pairs,
    scores: Scores,
    prompts: Sequence[str],
    texts: Sequence[Sequence[str]],
    *,
    min_margin: float,
) -> tuple[Pairs, Counter]:
    """Return the pairs that are fit for training, and counts of the others by reason.

    Pairs are left out if a score is not finite, if the responses are identical or one
    is empty, if the margin is at most `min_margin`, or if they are duplicates.
    """
    kept, dropped, seen = [], Counter(), set()
    for prompt, chosen, rejected in pairs:
        margin = scores[prompt, chosen] - scores[prompt, rejected]
        responses = texts[prompt][chosen], texts[prompt][rejected]
        if not np.isfinite(margin):
            dropped["score not finite"] += 1
        elif responses[0] == responses[1]:
            dropped["identical responses"] += 1
        elif not all(text.strip() for text in responses):
            dropped["empty response"] += 1
        elif margin <= min_margin:
            dropped["margin too small"] += 1
        elif (prompts[prompt], *responses) in seen:
            dropped["duplicate"] += 1
        else:
            seen.add((prompts[prompt], *responses))
            kept.append((prompt, chosen, rejected))
    return np.array(kept, int).reshape(-1, 3), dropped


def _better_first(pairs: Pairs, scores: Scores) -> Pairs:
    prompt, a, b = pairs.T
    a_is_worse = scores[prompt, a] < scores[prompt, b]
    return np.where(a_is_worse[:, None], pairs[:, [0, 2, 1]], pairs)
