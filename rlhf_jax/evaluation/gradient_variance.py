"""The variance of the policy gradient under each baseline, over ratios of B to W.

REINFORCE takes the gradient of one response, g = (r - b) grad log pi(y | x). For a
standard normal direction v over all parameters, E[(v . g)^2] = |g|^2. So the trace of
g's covariance is the mean over directions of the variance of (r - b) d, where
d = v . grad log pi(y | x) is the derivative of the response's log-probability along v
(`answers.logprob_derivatives`). The same d serve all baselines and all scores.

Baselines are of answers that were not used for r: the other samples of the prompt stand
for the reference's, as both policies are the same when PPO starts. "none" is a
constant, the mean of all scores, the best one for the variance of the scores.

The scores alone (score_variance.py) predict the variance of a baseline relative to none
as that of r - b, which is 2W / (W + B) for one sampled answer; the prediction is exact
where d does not depend on the scores.

Letters: N prompts, K responses to each, J of them with derivatives, R directions.
"""

import math
from collections.abc import Sequence

import numpy as np

from rlhf_jax.evaluation.score_variance import variance_left
from rlhf_jax.evaluation.win_rate import interval

MEANS = (1, 4)  # numbers of answers whose mean is a baseline
DRAWS = 8  # of the prompts' numbers


def gradient_variance(advantages: np.ndarray, derivatives: np.ndarray) -> float:
    """Return the trace of the covariance of the gradients of M responses, without bias.

    Args:
        advantages: float [M], each response's score minus its baseline.
        derivatives: float [M, R], of each response's log-probability along R
            independent directions.
    """
    along = advantages[:, None].astype(np.float64) * derivatives
    return float(along.var(axis=0, ddof=1).mean())


def offsets(scores: np.ndarray, ratio: float, normal: np.ndarray) -> np.ndarray:
    """Return a number for each prompt, float64 [N]: added to all scores of the prompt,
    it makes B / W equal `ratio` and leaves W.

    The prompts' own mean scores are taken away and `normal` is put in their place,
    scaled. So B is the same for long and short answers, whichever prompts a reward
    model scores high.

    Args:
        scores: float [N, K], with N at least 3.
        normal: float [N], standard normal numbers.
    """
    means = scores.mean(axis=1, dtype=np.float64)
    # The mean of K responses has the variance B + W / K.
    wanted = scores.var(axis=1, ddof=1).mean() * (ratio + 1 / scores.shape[1])
    fresh = normal - normal.mean()
    return fresh * math.sqrt(wanted) / fresh.std(ddof=1) - (means - means.mean())


def relative_variance(
    scores: np.ndarray,
    greedy: np.ndarray,
    derivatives: np.ndarray,
    normals: np.ndarray,
    ratios: Sequence[float],
) -> dict[str, np.ndarray]:
    """Return the variance of the policy gradient under each baseline, divided by that
    without baseline, at each ratio of B to W: float [ratios].

    A prompt's offset moves a response and its baseline alike: only the variance without
    baseline depends on the ratio.

    Args:
        scores: float [N, K], of sampled answers, with K above the largest of `MEANS`.
        greedy: float [N], of the likeliest answers.
        derivatives: float [N, J, R], of the first J answers to each prompt.
        normals: float [Z, N], standard normal numbers for `offsets`, over whose Z draws
            the variance without baseline is a mean.
    """
    samples, count = scores.shape[1], derivatives.shape[1]
    own = scores[:, :count].astype(np.float64)
    flat = derivatives.reshape(-1, derivatives.shape[2])
    others = np.stack([np.delete(scores, j, axis=1) for j in range(count)], axis=1)

    def variance(baseline: np.ndarray) -> float:
        return gradient_variance((own - baseline).reshape(-1), flat)

    def of_mean(size: int) -> float:
        """Return the mean over all neighbours among the other samples, in a ring."""
        rings = [np.roll(others, i, axis=2) for i in range(samples - 1)]
        return float(np.mean([variance(x[..., :size].mean(axis=2)) for x in rings]))

    under = {f"mean of {size}": of_mean(size) for size in MEANS}
    under[f"leave-one-out of {samples}"] = variance(others.mean(axis=2))
    under["greedy"] = variance(greedy[:, None])
    constant = scores.mean()

    def without(ratio: float) -> float:
        shifts = [offsets(scores, ratio, normal)[:, None] for normal in normals]
        return float(np.mean([variance(constant - shift) for shift in shifts]))

    bare = np.array([without(ratio) for ratio in ratios])
    return {name: value / bare for name, value in under.items()}


def crossing(ratios: Sequence[float], relative: np.ndarray) -> float:
    """Return the B / W from which a baseline lowers the variance.

    The logarithm of the relative variance is linear in that of B / W between two
    ratios, and goes on beyond the outermost two; 0 where the baseline lowers the
    variance everywhere, inf where nowhere.

    Args:
        ratios: rising, 2 or more.
        relative: float [ratios].
    """
    x, y = np.log(ratios), np.log(relative)
    falls = np.flatnonzero((y[:-1] > 0) & (y[1:] <= 0))
    i = falls[0] if len(falls) else 0 if y[0] <= 0 else len(x) - 2
    slope = (y[i + 1] - y[i]) / (x[i + 1] - x[i])
    if slope < 0:
        return float(np.exp(x[i] - y[i] / slope))
    return 0.0 if y[i] <= 0 else math.inf


def compare_gradients(
    scores: np.ndarray,
    greedy: np.ndarray,
    derivatives: np.ndarray,
    ratios: Sequence[float],
    *,
    seed: int,
) -> dict:
    """Return the relative variance of the policy gradient under each baseline at each
    ratio of B to W, the one that the scores predict, and the ratio from which the mean
    of sampled answers lowers the variance, with the interval over prompts.

    Args:
        scores: float [N, K], of sampled answers, with K above the largest of `MEANS`
            and N at least 3.
        greedy: float [N], of the likeliest answers.
        derivatives: float [N, J, R], of the first J answers to each prompt.
        ratios: rising, 2 or more.
    """
    normals = np.random.default_rng(seed).standard_normal((DRAWS, len(scores)))
    means = [f"mean of {size}" for size in MEANS]

    def relative(rows: np.ndarray) -> dict[str, np.ndarray]:
        return relative_variance(
            scores[rows], greedy[rows], derivatives[rows], normals[:, rows], ratios
        )

    def crossings(rows: np.ndarray) -> np.ndarray:
        measured = relative(rows)
        return np.array([crossing(ratios, measured[name]) for name in means])

    every = np.arange(len(scores))
    measured = relative(every)
    left = []
    for ratio in ratios:
        shift = offsets(scores, ratio, normals[0])  # the law needs B and W alone
        left.append(variance_left(scores + shift[:, None], greedy + shift))
    # A resample of few prompts may repeat one of them, which has no variance.
    with np.errstate(all="ignore"):
        ends = interval(crossings, len(scores), seed=seed)
    count, directions = derivatives.shape[1:]
    numbers = {
        "responses": len(scores) * count,
        "directions": directions,
        "ratios": list(ratios),
        "relative variance": {name: x.tolist() for name, x in measured.items()},
        "predicted": {name: [x[name] / x["none"] for x in left] for name in measured},
    }
    for key, values in zip(
        ("crossing", "crossing_low", "crossing_high"),
        (crossings(every), *ends),
        strict=True,
    ):
        numbers[key] = dict(zip(means, values.tolist(), strict=True))
    return numbers
