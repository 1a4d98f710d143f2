"""Forward passes of PPO's models over a rollout, as rows of their own or packed.

Letters: B batch, R response, N packed rows, T tokens and S slots of each, L layers with
experts, E experts of a token.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from rlhf_jax.batches import Experience, PackedRows, Rollout
from rlhf_jax.data import packing
from rlhf_jax.generation.scoring import (
    one_response,
    packed_logprobs,
    packed_scores,
    packed_values,
    response_logprobs,
    response_scores,
    response_values,
)
from rlhf_jax.losses import masked
from rlhf_jax.models.policy import Policy
from rlhf_jax.parallel.mesh import row_unit
from rlhf_jax.parallel.sharding import fetch
from rlhf_jax.ppo.options import Hyper
from rlhf_jax.ppo.state import Frozen, PPOState
from rlhf_jax.training.accumulate import in_parts

Batch = TypeVar("Batch", Rollout, Experience)


class ModelOutputs(NamedTuple):
    """Outputs of all models on a rollout; zeros where masked, except in `entropy`."""

    old_logprobs: Float[Array, "B R"]
    entropy: Float[Array, "B R"]
    ref_logprobs: Float[Array, "B R"]
    scores: Float[Array, " B"] | None  # None without a reward model
    values: Float[Array, "B R"] | None  # None without a critic


def run_models(
    state: PPOState,
    frozen: Frozen,
    rollout: Rollout,
    packed: PackedRows | None = None,
    *,
    hyper: Hyper,
) -> ModelOutputs:
    """Run one forward pass of each model over a rollout, as many rows at a time as in
    the update, since that many fit in memory.

    Args:
        packed: the rollout as packed rows; None runs its own rows.
    """
    forward = functools.partial(forward_models, state=state, frozen=frozen, hyper=hyper)
    parts = hyper.minibatches * hyper.microbatches
    if packed is None:
        return in_parts(lambda part: forward(part, None), rollout, parts=parts)
    num_rows, num_slots = packed.slots.shape
    part_of_rollout = with_rows_as(lambda x: in_slots(x, packed), rollout)
    if rollout.routing is not None:
        part_of_rollout = dataclasses.replace(
            part_of_rollout, routing=packed_routing(rollout.routing, packed)
        )
    out = in_parts(
        lambda part: jax.tree.map(
            lambda x: x.reshape(-1, num_slots, *x.shape[1:]), forward(*part)
        ),
        (part_of_rollout, packed),
        parts=parts,
    )
    # The slot of each row of the rollout.
    place = jnp.zeros(len(rollout.ended), jnp.int32)
    place = place.at[packed.slots.reshape(-1)].set(
        jnp.arange(num_rows * num_slots), mode="drop"
    )
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[place], out)


def forward_models(
    rollout: Rollout,
    packed: PackedRows | None,
    *,
    state: PPOState,
    frozen: Frozen,
    hyper: Hyper,
) -> ModelOutputs:
    """Run one forward pass of each model over some rows of a rollout, or over packed
    rows that hold it."""
    if packed is not None:
        rollout = with_rows_as(lambda x: x.reshape(-1, *x.shape[2:]), rollout)
    mask = rollout.response_mask
    old = policy_logprobs(
        state.policy.model, rollout, packed, hyper=hyper, routing=rollout.routing
    )
    reference = frozen.reference if state.reference is None else state.reference
    ref = policy_logprobs(reference, rollout, packed, hyper=hyper)
    scores = values = None
    if frozen.reward is not None and packed is None:
        scores = response_scores(frozen.reward, *one_response(rollout))[:, 0]
    elif frozen.reward is not None:
        scores = packed_scores(frozen.reward, packed).reshape(-1)
    if state.value is not None:
        values = masked.keep(state_values(state.value.model, rollout, packed), mask)
    return ModelOutputs(
        old_logprobs=masked.keep(old.logprobs, mask),
        entropy=old.entropy,
        ref_logprobs=masked.keep(ref.logprobs, mask),
        scores=scores,
        values=values,
    )


def policy_logprobs(
    policy: Policy,
    batch: Rollout | Experience,
    rows: PackedRows | None = None,
    *,
    hyper: Hyper,
    routing: Int[Array, "_ T L E"] | None = None,
):
    """Compute log-probability and entropy [B, R] of the response tokens, at the
    temperature of the rollout.

    Args:
        rows: the batch as packed rows, whose slots are then B.
        routing: the experts of the tokens of the batch, or of the packed rows; None
            leaves the choice to the policy.
    """
    options = {
        "temperature": hyper.temperature,
        "num_tokens": hyper.num_tokens,
        "chunk_size": hyper.chunk_size,
        "routing": routing,
    }
    if rows is None:
        out = response_logprobs(policy, *one_response(batch), **options)
    else:
        width = batch.responses.shape[-1]
        out = packed_logprobs(policy, rows, width=width, **options)
    return jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), out)


def state_values(value_model, batch: Rollout | Experience, packed: PackedRows | None):
    """Compute the value of the state before each response token: float32 [B, R]."""
    if packed is None:
        return response_values(value_model, *one_response(batch))[:, 0]
    width = batch.responses.shape[-1]
    values = packed_values(value_model, packed, width=width)
    return values.reshape(-1, width)


def with_rows_as(change: Callable, batch: Batch) -> Batch:
    """Change all arrays of a batch that have an axis of responses; `routing`, of tokens
    that may lie in packed rows, and the packed rows themselves stay."""
    kept = {"routing": batch.routing}
    if isinstance(batch, Experience):
        kept["packed"] = batch.packed
    bare = dataclasses.replace(batch, **dict.fromkeys(kept))
    return dataclasses.replace(jax.tree.map(change, bare), **kept)


def packed_routing(
    routing: Int[Array, "B T L E"], packed: PackedRows
) -> Int[Array, "N T L E"]:
    """Return the routing of the tokens of packed rows from that of the rows of their
    own, -1 at padding."""
    by_token = routing.reshape(-1, *routing.shape[2:])
    return jnp.where(packed.mask[..., None, None], by_token[packed.places], -1)


def in_slots(x: Array, packed: PackedRows) -> Array:
    """Return for every slot of packed rows its row of x: [B, ...] -> [N, S, ...]."""
    return x.at[packed.slots].get(mode="clip")


def packed_rows(
    config: ConfigDict, rollout: Rollout, rows: np.ndarray, parts: int, *, pad_id: int
) -> PackedRows | None:
    """Pack the rows [U, b] of a rollout on the host, to be split into `parts`; return
    None without `config.pack`."""
    if not config.pack:
        return None
    return packing.pack_minibatches(
        fetch(dataclasses.replace(rollout, routing=None)),
        rows,
        pad_id=pad_id,
        unit=row_unit(parts),
        places=config.replay_routing,
    )
