"""Draws of a batch: prompts that were answered and scored, once or, with dynamic
sampling, until their responses differ in their score."""

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from rlhf_jax.batches import Rollout
from rlhf_jax.generation.dynamic_sampling import fill
from rlhf_jax.generation.partial_rollout import Begun
from rlhf_jax.parallel.sharding import fetch, shard_batch
from rlhf_jax.ppo.forward import ModelOutputs
from rlhf_jax.ppo.rollouts import Answered
from rlhf_jax.ppo.state import PPOState
from rlhf_jax.rewards.rewards import RewardError, Scored
from rlhf_jax.training.metrics import Mean


class Rows(NamedTuple):
    """The responses of a batch and all that the experience is made of, by row."""

    responses: Rollout
    outputs: ModelOutputs
    scores: np.ndarray  # float32 [B]
    baseline: np.ndarray  # float32 [B]


class Draw(NamedTuple):
    """A batch of prompts that were answered and scored."""

    rows: Rows
    scored: Scored
    num_generated: float  # tokens
    generating: float  # seconds
    scoring: float  # seconds
    begun: Begun | None = None  # what goes on in the next iteration
    ahead: Answered | None = None  # what the next iteration learns from, if sampled


def draw_until_full(
    draws: Iterator[Draw], differ: Callable | None
) -> tuple[list[Draw], Rows, np.ndarray | None, dict]:
    """Draw batches until every prompt has responses that differ in their score.

    Args:
        draws: the batches that may be drawn; what is not needed is not computed.
        differ: `differing_groups`; None takes the first batch as it is.

    Returns:
        The draws; the rows of the filled batch; which of them to learn from, bool [B]
        (None: all); and metrics of the draws.
    """
    drawn = [next(draws)]
    if differ is None:
        return drawn, drawn[0].rows, None, {}

    def differs(rows: Rows) -> np.ndarray:
        return fetch(differ(rows.scores, rows.responses.ended))

    rows, wanted = fetch(drawn[0].rows), differs(drawn[0].rows)
    differing = [wanted]
    while not wanted.all() and (draw := next(draws, None)) is not None:
        drawn.append(draw)
        differing.append(differs(draw.rows))
        rows, wanted = fill(rows, wanted, fetch(draw.rows), differing[-1])
    metrics = {
        "draws/count": len(drawn),
        "draws/equal_fraction": Mean.of(~np.stack(differing)),
        "draws/left_out_fraction": Mean.of(~wanted),
        "draws/scores": Mean.of(np.stack([draw.rows.scores for draw in drawn])),
    }
    repeats = len(rows.scores) // len(wanted)
    return drawn, shard_batch(rows), np.repeat(wanted, repeats), metrics


@contextlib.contextmanager
def saved_before_fault(
    save: Callable[[int, PPOState], None], step: int, state: PPOState
) -> Iterator[None]:
    """Save the state if a function of rewards ends the run, so that no step is lost."""
    try:
        yield
    except RewardError:
        save(step, state)
        raise
