"""K responses of a policy to each prompt, and their scores. Annotators compare them,
preference pairs consist of them, and prompts are selected by their scores.

Letters: N prompts, K responses to each.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.data.batching import pad_left, pad_right, round_up
from rlhf_jax.data.encoding import sampled_response
from rlhf_jax.data.records import Prompt, Response
from rlhf_jax.data.tokenizers.tokenizer import Tokenizer
from rlhf_jax.generation.responses import sample_responses
from rlhf_jax.generation.sampling import sampling_with
from rlhf_jax.generation.scoring import response_scores
from rlhf_jax.losses.kl import missing_end_penalty
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.heads import ScoreModel
from rlhf_jax.parallel.sharding import fetch
from rlhf_jax.rewards.rewards import Rewards, Scored

_MULTIPLE = 16  # tokens; widths are rounded up to a multiple
_score = jax.jit(response_scores)


def sample_candidates(
    policy: ChatGLM,
    prompts: Sequence[list[int]],
    tokenizer: Tokenizer,
    key: jax.Array,
    *,
    count: int,
    batch_size: int,
    **sampling,
) -> list[list[Response]]:
    """Sample `count` responses to each prompt (token ids).

    Args:
        batch_size: the number of rows that decode side by side.
        sampling: arguments of `sampling_with`: max_new_tokens, temperature, top_k,
            top_p.
    """
    groups = sample_responses(
        policy,
        prompts,
        key,
        sampling_with(tokenizer, **sampling),
        samples=count,
        rows=batch_size,
    )
    return [[sampled_response(ids, tokenizer) for ids in group] for group in groups]


def candidate_rewards(
    rewards: Rewards,
    reward_model: ScoreModel | None,
    records: Sequence[Prompt],
    prompts: Sequence[list[int]],
    candidates: Sequence[Sequence[Response]],
    *,
    pad_id: int,
    batch_size: int,
    end_penalty: float,
) -> Scored:
    """Return the score of every candidate and its rewards by name, float32 [N, K] each,
    as in PPO: the score is the sum of the rewards by their weights, minus `end_penalty`
    where the candidate was cut.

    Args:
        reward_model: None where all rewards are functions.
        records, prompts: the same prompts as records and as token ids.
        batch_size: the number of prompts that the reward model reads at once, each with
            its K candidates.

    Raises:
        RewardError: a function failed, and `on_reward_error` is "stop".
    """
    shape = len(candidates), len(candidates[0])
    scored = rewards.score(
        [record for record in records for _ in range(shape[1])],
        lambda: [response for group in candidates for response in group],
        lambda: (
            reward_model
            and _model_scores(
                reward_model, prompts, candidates, pad_id=pad_id, batch_size=batch_size
            ).reshape(-1)
        ),
    )
    scores = missing_end_penalty(
        scores=jnp.asarray(scored.scores.reshape(shape)),
        ended=jnp.asarray([[one.ended for one in group] for group in candidates]),
        penalty=end_penalty,
    )
    by_name = {name: x.reshape(shape) for name, x in scored.by_name.items()}
    return Scored(np.asarray(scores), by_name, scored.faults)


def _model_scores(
    reward_model: ScoreModel,
    prompts: Sequence[list[int]],
    candidates: Sequence[Sequence[Response]],
    *,
    pad_id: int,
    batch_size: int,
) -> np.ndarray:
    """Return the reward model's score of every candidate, float32 [N, K], read at the
    candidate's last token."""
    prompt_width = round_up(max(map(len, prompts)), _MULTIPLE)
    longest = max(len(one.tokens) for group in candidates for one in group)
    width = round_up(longest, _MULTIPLE)
    batches = []
    for start in range(0, len(prompts), batch_size):
        index = np.arange(start, start + batch_size) % len(prompts)
        rows, row_mask = pad_left([prompts[i] for i in index], prompt_width, pad_id)
        flat = [one.tokens for i in index for one in candidates[i]]
        tokens, mask = pad_right(flat, width, pad_id)
        shape = (len(index), -1, width)
        tokens, mask = tokens.reshape(shape), mask.reshape(shape)
        batches.append(fetch(_score(reward_model, rows, row_mask, tokens, mask)))
    return np.concatenate(batches)[: len(prompts)]
