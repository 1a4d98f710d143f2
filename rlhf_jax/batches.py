"""Batches: every kind of batch of the project, its shapes and the meaning of its masks.

Letters: B batch, T tokens, P prompt, K responses to one prompt, R response.
Prompts are left-padded to P and responses right-padded to R, so a prompt's last
token is always at P - 1. Masks are True at real tokens; a response's mask includes
its end token. Index r of any [.., R] array belongs to response token r: its
log-probability, its reward, the value of the state before it.
"""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


@typing.dataclass_transform(frozen_default=True)
def _batch(cls):
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


@_batch
class SFTBatch:
    """Dialogues, right-padded; only the assistant's tokens carry loss.

    Packed rows hold several: `examples` is the number of each token's dialogue in its
    row, and `targets` are the positions of the tokens that carry loss, with 0 behind
    them. Both are None where every dialogue has a row of its own.
    """

    tokens: Int[Array, "B T"]
    mask: Bool[Array, "B T"]
    loss_mask: Bool[Array, "B T"]
    examples: Int[Array, "B T"] | None = None
    targets: Int[Array, "B M"] | None = None


@_batch
class PromptBatch:
    """Prompts to answer. `index` identifies a row independently of its batch, and the
    random keys of a row derive from `index`. The k-th of K responses to the i-th prompt
    of a data set has the index i * K + k."""

    prompts: Int[Array, "B P"]
    prompt_mask: Bool[Array, "B P"]
    index: Int[Array, " B"]


@_batch
class PreferenceBatch:
    """Prompts with two responses each: [:, 0] is chosen, [:, 1] is rejected.

    `valid` is False for rows that only fill the last batch of an evaluation.
    """

    prompts: Int[Array, "B P"]
    prompt_mask: Bool[Array, "B P"]
    responses: Int[Array, "B 2 R"]
    response_mask: Bool[Array, "B 2 R"]
    valid: Bool[Array, " B"]


@_batch
class PackedPairs:
    """Pairs of responses packed after their shared prompt in one row without gaps,
    padded on the right. `segments` is 0 on the prompt, 1 on chosen and 2 on rejected;
    `ends` is the position of each response's last token; `valid` is that of
    `PreferenceBatch`. With `examples`, a row has room for S pairs (`PackedRows`), and
    `ends` and `valid` have the axis S."""

    tokens: Int[Array, "B T"]
    mask: Bool[Array, "B T"]
    segments: Int[Array, "B T"] | None
    ends: Int[Array, "B ... 2"]
    valid: Bool[Array, "B ..."]
    examples: Int[Array, "B T"] | None = None


@_batch
class PackedRows:
    """Prompts with K responses each, several of them one after another in a row, padded
    on the right. Letters: N rows, T tokens, M targets, S slots of a row.

    `examples` and `segments` are those of `models.positions`; `segments` is None where
    every response has a copy of its prompt, as an example of its own. `targets` are the
    positions of the responses' tokens, one response after another, and `before` those
    of the states before these tokens. Slot s of a row holds the prompt `slots[:, s]` of
    the batch, and its k-th response is in `lengths[:, s, k]` targets from
    `firsts[:, s, k]` on; `ends` is the position of its last token, or of its prompt's
    if the response is empty. An empty slot has the number of prompts in `slots`, and 0
    elsewhere. `places` tells where in the batch a token was, b (P + R) + t for place t
    of its row b, and 0 at padding; None if nobody asks.
    """

    tokens: Int[Array, "N T"]
    mask: Bool[Array, "N T"]
    examples: Int[Array, "N T"]
    segments: Int[Array, "N T"] | None
    targets: Int[Array, "N M"]
    before: Int[Array, "N M"]
    slots: Int[Array, "N S"]
    firsts: Int[Array, "N S K"]
    lengths: Int[Array, "N S K"]
    ends: Int[Array, "N S K"]
    places: Int[Array, "N T"] | None = None


@_batch
class Rollout:
    """Sampled responses. `logprobs` are those of the sampler; `ended` is True where the
    response ended with an end token rather than at the length limit. `routing` are the
    E experts to which each token, of T = P + R, went in each of the L layers with
    experts, -1 where there is no token; None if they were not kept."""

    prompts: Int[Array, "B P"]
    prompt_mask: Bool[Array, "B P"]
    responses: Int[Array, "B R"]
    response_mask: Bool[Array, "B R"]
    logprobs: Float[Array, "B R"]
    ended: Bool[Array, " B"]
    routing: Int[Array, "B T L E"] | None = None


@_batch
class Experience:
    """A rollout with everything the PPO update needs, constant during the update.
    `response_mask` is False on responses that have no part in the update. `weights` are
    those of the tokens' policy losses, None for equal weights; `old_values` and
    `returns` are None without a value model; `routing` is that of `Rollout`. With
    `packed`, the prompts and responses as packed rows, all other arrays have the axes N
    and S in place of B, and `routing` is that of the tokens of the packed rows."""

    prompts: Int[Array, "B P"]
    prompt_mask: Bool[Array, "B P"]
    responses: Int[Array, "B R"]
    response_mask: Bool[Array, "B R"]
    old_logprobs: Float[Array, "B R"]
    ref_logprobs: Float[Array, "B R"]
    advantages: Float[Array, "B R"]
    weights: Float[Array, "B R"] | None
    old_values: Float[Array, "B R"] | None
    returns: Float[Array, "B R"] | None
    routing: Int[Array, "B T L E"] | None = None
    packed: PackedRows | None = None


def pack(
    prompts: Int[Array, "B P"],
    prompt_mask: Bool[Array, "B P"],
    responses: Int[Array, "B K R"],
    response_mask: Bool[Array, "B K R"],
) -> tuple[Int[Array, "B T"], Bool[Array, "B T"], Int[np.ndarray, " T"]]:
    """Pack K responses after their shared prompt: return tokens and mask [B, P + K R],
    and the segments [P + K R] of every row.

    Segment 0 is the prompt and segment k is the k-th response. A token attends to its
    own segment and to the prompt, so the prompt is computed once for all K responses.
    """
    batch, count, length = responses.shape
    tokens = jnp.concatenate([prompts, responses.reshape(batch, count * length)], 1)
    mask = jnp.concatenate([prompt_mask, response_mask.reshape(batch, -1)], 1)
    lengths = [prompts.shape[1], *[length] * count]
    segments = np.repeat(np.arange(count + 1, dtype=np.int32), lengths)
    return tokens, mask, segments
