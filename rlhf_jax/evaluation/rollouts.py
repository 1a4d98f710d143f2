"""Responses with their scores, to all prompts of a data set or to some."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from rlhf_jax.batches import PromptBatch, Rollout
from rlhf_jax.data.batching import prompt_batch
from rlhf_jax.data.records import Prompt, Response
from rlhf_jax.data.testbed.quality import true_quality
from rlhf_jax.data.tokenizers.chat import decode_response
from rlhf_jax.data.tokenizers.tokenizer import Tokenizer
from rlhf_jax.generation.rollout import rollout
from rlhf_jax.generation.sampling import Sampling
from rlhf_jax.generation.scoring import one_response, response_scores
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.heads import ScoreModel
from rlhf_jax.parallel.sharding import fetch
from rlhf_jax.rewards.rewards import Rewards
from rlhf_jax.training.metrics import Mean


class ScoredRollout(NamedTuple):
    """K responses to each of n prompts, on the host."""

    index: np.ndarray  # int [n], positions of the prompts in the data set
    rollout: Rollout  # n * K rows, the K responses to one prompt adjacent
    # float32 [n, K], the reward model's scores of the responses; None without it
    scores: np.ndarray | None


class Evaluated(NamedTuple):
    """The answers to the held-out prompts, one to each of N."""

    metrics: dict[str, Mean]
    samples: list[dict]  # for samples.jsonl
    rollout: Rollout  # on the host
    scores: np.ndarray  # float32 [N], what the policy learns from
    texts: list[str]


@jax.jit
def rollout_scores(
    reward_model: ScoreModel | None, responses: Rollout
) -> jax.Array | None:
    """Return the reward model's score of each response: float32 [B]; None without a
    reward model."""
    if reward_model is None:
        return None
    return response_scores(reward_model, *one_response(responses))[:, 0]


def scored_rollouts(
    policy: ChatGLM,
    reward_model: ScoreModel,
    prompts: Sequence[list[int]],
    key: jax.Array,
    sampling: Sampling,
    *,
    samples_per_prompt: int,
    batch_size: int,
    width: int,
) -> Iterator[ScoredRollout]:
    """Answer every prompt and score the answers, `batch_size` prompts at a time.

    All batches have one shape: the last batch is filled with the first prompts, whose
    extra answers are dropped.
    """
    for first in range(0, len(prompts), batch_size):
        index = np.arange(first, first + batch_size) % len(prompts)
        real = min(batch_size, len(prompts) - first)
        batch: PromptBatch = prompt_batch(
            [prompts[i] for i in index], index, pad_id=sampling.pad_id, width=width
        )
        responses = rollout(policy, batch, key, sampling, samples=samples_per_prompt)
        scores = fetch(rollout_scores(reward_model, responses))
        rows = real * samples_per_prompt
        yield ScoredRollout(
            index=index[:real],
            rollout=jax.tree.map(lambda x, rows=rows: x[:rows], fetch(responses)),
            scores=None
            if scores is None
            else scores.reshape(batch_size, samples_per_prompt)[:real],
        )


def answer_scores(
    policy: ChatGLM,
    reward_model: ScoreModel | None,
    batch: PromptBatch,
    key: jax.Array,
    sampling: Sampling,
    *,
    rewards: Rewards,
    records: Sequence[Prompt],
    tokenizer: Tokenizer,
    samples: int = 1,
) -> np.ndarray:
    """Return the mean score of `samples` answers to each prompt of a batch: float32
    [B].

    Args:
        records: the prompts of the batch.
    """
    responses = rollout(policy, batch, key, sampling, samples=samples)
    scores = rollout_scores(reward_model, responses)
    every = rewards.score(
        [record for record in records for _ in range(samples)],
        lambda: responses_of(fetch(responses), tokenizer),
        lambda: fetch(scores),
    ).scores
    return every.reshape(-1, samples).mean(axis=1)


def responses_of(rolled: Rollout, tokenizer: Tokenizer) -> list[Response]:
    """Return the responses of a rollout that is on the host, as records."""
    lengths = rolled.response_mask.sum(-1)
    ids = [row[:n].tolist() for row, n in zip(rolled.responses, lengths, strict=True)]
    return [
        Response(decode_response(tokens, tokenizer), bool(ended), tokens)
        for tokens, ended in zip(ids, rolled.ended, strict=True)
    ]


def evaluate(
    policy: ChatGLM,
    reward_model: ScoreModel | None,
    records: Sequence[Prompt],
    prompts: Sequence[list[int]],
    key: jax.Array,
    sampling: Sampling,
    tokenizer: Tokenizer,
    *,
    rewards: Rewards,
    width: int,
) -> Evaluated:
    """Answer held-out prompts, the same with the same random keys at every call, and
    return the answers, with scores and lengths as metrics. In the testbed the metrics
    include the true quality, which only the report of the run reads.

    Args:
        records, prompts: the same prompts as records and as token ids.
    """
    (batch,) = scored_rollouts(
        policy,
        reward_model,
        prompts,
        key,
        sampling,
        samples_per_prompt=1,
        batch_size=len(prompts),
        width=width,
    )
    responses = responses_of(batch.rollout, tokenizer)
    scored = rewards.score(
        records,
        lambda: responses,
        lambda: None if batch.scores is None else batch.scores[:, 0],
    )
    samples = [
        {
            "prompt": tokenizer.decode(prompt),
            "response": response.text,
            "ended": response.ended,
            "reward": float(scored.scores[i]),
            **rewards.of_rows(scored, i),
        }
        for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
    ]
    metrics = {
        "eval/scores": Mean.of(scored.scores),
        "eval/response_length": Mean.of(batch.rollout.response_mask.sum(-1)),
        "eval/ended_fraction": Mean.of(batch.rollout.ended),
    }
    metrics |= {f"eval/{k}": x for k, x in rewards.metrics(scored).items()}
    texts = [response.text for response in responses]
    metrics |= quality_metrics(records, texts)
    return Evaluated(metrics, samples, batch.rollout, scored.scores, texts)


def quality_metrics(
    prompts: Sequence[Prompt], answers: Sequence[str]
) -> dict[str, Mean]:
    """Return the mean true quality of answers in the testbed, no metric elsewhere."""
    if any(prompt.task is None for prompt in prompts):
        return {}
    return {"eval/quality": Mean.of(list(map(true_quality, prompts, answers)))}
