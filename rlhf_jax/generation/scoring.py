"""Log-probabilities, scores and values of given responses.

One forward pass reads [prompt | response 1 | ... | response K], so the prompt is
computed once, whatever K. Letters: B batch, P prompt, K responses to a prompt, R
response.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.batches import (
    Experience,
    PackedPairs,
    PackedRows,
    Rollout,
    SFTBatch,
    pack,
)
from rlhf_jax.losses import logprobs as logprobs_
from rlhf_jax.models.heads import ScoreModel
from rlhf_jax.models.policy import Policy


def one_response(batch: Rollout | Experience) -> tuple[Array, Array, Array, Array]:
    """Unpack a batch with one response to each prompt into the arguments of the
    functions below: prompts, prompt_mask, responses [B, 1, R], response_mask."""
    mask = batch.response_mask[:, None]
    return batch.prompts, batch.prompt_mask, batch.responses[:, None], mask


def response_logprobs(
    policy: Policy,
    prompts: Int[Array, "B P"],
    prompt_mask: Bool[Array, "B P"],
    responses: Int[Array, "B K R"],
    response_mask: Bool[Array, "B K R"],
    *,
    temperature: float,
    num_tokens: int,
    chunk_size: int,
    routing: Int[Array, "B T L E"] | None = None,
) -> logprobs_.TokenLogprobs:
    """Compute log-probability and entropy of every response token: float32 [B, K, R].

    Values are arbitrary where `response_mask` is False.

    Args:
        routing: the experts of the tokens of prompt and responses, T = P + K R; None
            leaves the choice to the policy.
    """
    tokens, mask, segments = pack(prompts, prompt_mask, responses, response_mask)
    hidden = policy.hidden(tokens, mask, segments=segments, routing=routing)
    return logprobs_.packed_response_logprobs(
        hidden,
        policy.output_matrix,
        responses,
        prompt_length=prompts.shape[1],
        temperature=temperature,
        num_tokens=num_tokens,
        chunk_size=chunk_size,
    )


def dialogue_logprobs(
    policy: Policy, batch: SFTBatch, *, num_tokens: int, chunk_size: int
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
    """Compute the log-probability of every token of a dialogue, float32, 0 at index 0,
    and the mask of those that carry loss; of packed rows those of the targets alone,
    [B, M]."""
    options: dict[str, Any] = {
        "temperature": 1.0,
        "num_tokens": num_tokens,
        "chunk_size": chunk_size,
    }
    if batch.targets is None:
        hidden = policy.hidden(batch.tokens, batch.mask)
        out = logprobs_.next_token_logprobs(
            hidden, policy.output_matrix, batch.tokens, **options
        )
        return out.logprobs, batch.loss_mask
    hidden = policy.hidden(batch.tokens, batch.mask, examples=batch.examples)
    out = logprobs_.target_logprobs(
        hidden,
        policy.output_matrix,
        batch.tokens,
        batch.targets,
        batch.targets - 1,
        **options,
    )
    return out.logprobs, batch.targets > 0


def response_scores(
    reward_model: ScoreModel,
    prompts: Int[Array, "B P"],
    prompt_mask: Bool[Array, "B P"],
    responses: Int[Array, "B K R"],
    response_mask: Bool[Array, "B K R"],
) -> Float[Array, "B K"]:
    """Score each response at its last real token: float32 [B, K].

    The score of an empty response is read at the end of its prompt.
    """
    scores = _token_scores(reward_model, prompts, prompt_mask, responses, response_mask)
    prompt_length = prompts.shape[1]
    at_prompt, at_responses = scores[:, :prompt_length], scores[:, prompt_length:]
    at_responses = at_responses.reshape(responses.shape)
    last = jnp.maximum(response_mask.sum(-1) - 1, 0)
    score = jnp.take_along_axis(at_responses, last[..., None], axis=-1)[..., 0]
    return jnp.where(response_mask.any(-1), score, at_prompt[:, -1:])


def pair_scores(
    reward_model: ScoreModel, batch: PackedPairs
) -> Float[Array, "B ... 2"]:
    """Score chosen and rejected, each at its last token: float32, one for each of
    `ends`."""
    return _at(_packed_token_scores(reward_model, batch), batch.ends)


def response_values(
    value_model: ScoreModel,
    prompts: Int[Array, "B P"],
    prompt_mask: Bool[Array, "B P"],
    responses: Int[Array, "B K R"],
    response_mask: Bool[Array, "B K R"],
) -> Float[Array, "B K R"]:
    """Compute the value of the state before each response token: float32 [B, K, R]."""
    scores = _token_scores(value_model, prompts, prompt_mask, responses, response_mask)
    before = logprobs_.response_hidden(
        scores[..., None],
        prompt_length=prompts.shape[1],
        num_responses=responses.shape[1],
    )
    return before[..., 0]


def packed_logprobs(
    policy: Policy,
    rows: PackedRows,
    *,
    width: int,
    temperature: float,
    num_tokens: int,
    chunk_size: int,
    routing: Int[Array, "N T L E"] | None = None,
) -> logprobs_.TokenLogprobs:
    """Compute `response_logprobs` of packed rows: float32 [N, S, K, width], 0 behind a
    response's end."""
    hidden = policy.hidden(
        rows.tokens,
        rows.mask,
        segments=rows.segments,
        examples=rows.examples,
        routing=routing,
    )
    out = logprobs_.target_logprobs(
        hidden,
        policy.output_matrix,
        rows.tokens,
        rows.targets,
        rows.before,
        temperature=temperature,
        num_tokens=num_tokens,
        chunk_size=chunk_size,
    )
    return jax.tree.map(lambda x: _unpacked(x, rows, width), out)


def packed_scores(reward_model: ScoreModel, rows: PackedRows) -> Float[Array, "N S K"]:
    """Compute `response_scores` of packed rows, float32."""
    scores = _packed_token_scores(reward_model, rows)
    return _at(scores, rows.ends)


def packed_values(
    value_model: ScoreModel, rows: PackedRows, *, width: int
) -> Float[Array, "N S K R"]:
    """Compute `response_values` of packed rows: float32 [N, S, K, width], 0 behind a
    response's end."""
    scores = _packed_token_scores(value_model, rows)
    return _unpacked(_at(scores, rows.before), rows, width)


def _packed_token_scores(model, rows):
    return model(rows.tokens, rows.mask, segments=rows.segments, examples=rows.examples)


def _unpacked(x: Float[Array, "N M"], rows: PackedRows, width: int):
    """Return numbers of targets by response: [N, S, K, width]."""
    shape = (*rows.firsts.shape, width)
    place = jax.lax.broadcasted_iota(jnp.int32, shape, 3)
    by_response = _at(x, rows.firsts[..., None] + place)
    return jnp.where(place < rows.lengths[..., None], by_response, 0.0)


def _at(x: Float[Array, "N T"], index: Int[Array, "N ..."]) -> Float[Array, "N ..."]:
    """Return each row's numbers at the indices of that row."""
    flat = index.reshape(len(index), -1)
    return jnp.take_along_axis(x, flat, axis=1, mode="clip").reshape(index.shape)


def _token_scores(model, prompts, prompt_mask, responses, response_mask):
    tokens, mask, segments = pack(prompts, prompt_mask, responses, response_mask)
    return model(tokens, mask, segments=segments)
