"""Which of a prompt's scored responses make a pair: arrays in, arrays out.

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
    """The pairs of the rule of that name."""
    if rule == "ranks":
        return pair_ranks(scores, chosen_rank, rejected_rank)
    if rule == "random":
        return pair_at_random(scores, np.random.default_rng(seed))
    if rule == "every":
        return pair_all(scores)
    raise ValueError(f"{rule=} must be one of {', '.join(RULES)}.")


def pair_ranks(scores: Scores, chosen_rank: int, rejected_rank: int) -> Pairs:
    """One rank against another: 0 is the best, -1 the worst, K // 2 the median."""
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
    """Two different responses to each prompt."""
    num_prompts, count = scores.shape
    picked = [(p, *rng.permutation(count)[:2]) for p in range(num_prompts)]
    return _better_first(np.array(picked), scores)


def pair_all(scores: Scores) -> Pairs:
    """Every two responses to each prompt, in the prompts' order."""
    num_prompts, count = scores.shape
    both = itertools.product(
        range(num_prompts), itertools.combinations(range(count), 2)
    )
    return _better_first(np.array([(p, *two) for p, two in both]), scores)


def usable_pairs(
    pairs: Pairs,
    scores: Scores,
    prompts: Sequence[str],
    texts: Sequence[Sequence[str]],
    *,
    min_margin: float,
) -> tuple[Pairs, Counter]:
    """The pairs that teach something, and how many were left out for which reason.

    Left out: scores that are not finite, responses that are empty or identical,
    margins up to `min_margin`, and what is there already.
    """
    kept, dropped, seen = [], Counter(), set()
    for prompt, chosen, rejected in pairs:
        margin = scores[prompt, chosen] - scores[prompt, rejected]
        both = texts[prompt][chosen], texts[prompt][rejected]
        if not np.isfinite(margin):
            dropped["score not finite"] += 1
        elif both[0] == both[1]:
            dropped["identical responses"] += 1
        elif not all(text.strip() for text in both):
            dropped["empty response"] += 1
        elif margin <= min_margin:
            dropped["margin too small"] += 1
        elif (prompts[prompt], *both) in seen:
            dropped["duplicate"] += 1
        else:
            seen.add((prompts[prompt], *both))
            kept.append((prompt, chosen, rejected))
    return np.array(kept, int).reshape(-1, 3), dropped


def _better_first(pairs: Pairs, scores: Scores) -> Pairs:
    prompt, a, b = pairs.T
    a_is_worse = scores[prompt, a] < scores[prompt, b]
    return np.where(a_is_worse[:, None], pairs[:, [0, 2, 1]], pairs)
