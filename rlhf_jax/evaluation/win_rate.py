"""Win, tie and lose of one model against another on the same prompts."""

import numpy as np
from scipy import stats


def win_rate(
    ours: np.ndarray, theirs: np.ndarray, *, tie_margin: float, seed: int
) -> dict[str, float]:
    """Shares of prompts won, tied and lost, and wins minus losses with an interval.

    Args:
        ours, theirs: quality of each model's answer to each prompt: float [prompts].
        tie_margin: differences up to it are ties.
        seed: of the bootstrap over prompts (95 %, percentile).
    """
    difference = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    result = (difference > tie_margin).astype(float) - (difference < -tie_margin)
    low, high = _interval(result, seed)
    return {
        "win": float((result > 0).mean()),
        "tie": float((result == 0).mean()),
        "lose": float((result < 0).mean()),
        "net": float(result.mean()),
        "net_low": low,
        "net_high": high,
    }


def mean_with_interval(values: np.ndarray, *, seed: int) -> dict[str, float]:
    """Mean and its 95 % bootstrap interval."""
    low, high = _interval(np.asarray(values, np.float64), seed)
    return {"mean": float(np.mean(values)), "low": low, "high": high}


def _interval(values: np.ndarray, seed: int) -> tuple[float, float]:
    if len(values) < 2 or np.ptp(values) == 0:
        return float(values.mean()), float(values.mean())
    interval = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=2000,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)
