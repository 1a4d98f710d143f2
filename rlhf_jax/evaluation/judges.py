"""Judges of answers, behind one call: `judge(answers, references) -> float [N, K]`.

`answers` holds the answers of K models to the same N prompts; `references`, N texts
that the judge may see, or None. Higher is better; NaN where there is no verdict.

- `by_truth`: the true quality, in the testbed.
- `by_reward_model`: the reward model's score.
- `by_marks`: a chat model marks each answer from 1 to 10 and sees the reference.
- `by_pairs`: a chat model compares two answers (K = 2) in both orders; the value is the
  share of the two comparisons that an answer wins, a tie counting as half. Swapping
  cancels position bias (Zheng et al., arXiv 2306.05685).

Chat models are called through a function of conversations, `ChatClient.answers`, which
returns "" where there was no answer.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from rlhf_jax.data.judge_messages import (
    OVERALL,
    mark_messages,
    pair_messages,
    read_marks,
    read_pair,
)
from rlhf_jax.data.records import Message, Prompt
from rlhf_jax.data.testbed.quality import true_quality
from rlhf_jax.data.verdicts import tell_unread
from rlhf_jax.evaluation.answers import Answers, scores
from rlhf_jax.models.heads import ScoreModel

Ask = Callable[[Sequence[Sequence[Message]]], list[str]]


class Judge(Protocol):
    def __call__(
        self, answers: Sequence[Answers], references: Sequence[str] | None = None
    ) -> np.ndarray: ...


def by_truth(answers, references=None) -> np.ndarray:
    """Return the true quality of each answer.

    Raises:
        ValueError: a prompt is not the testbed's.
    """
    check_truth(answers[0].prompts)
    return np.array(
        [list(map(true_quality, given.prompts, given.texts)) for given in answers]
    ).T


def check_truth(prompts: Sequence[Prompt]) -> None:
    """Raise ValueError unless all prompts are the testbed's, which knows the
    quality."""
    if any(prompt.task is None for prompt in prompts):
        raise ValueError(
            "judge='testbed' needs prompts of the testbed. For others set "
            "judge='reward_model' and reward_model, or judge='pairs' and service."
        )


def by_reward_model(model: ScoreModel, *, pad_id: int, batch_size: int) -> Judge:
    def judge(answers, references=None):
        return np.stack(
            [
                scores(model, given, pad_id=pad_id, batch_size=batch_size)
                for given in answers
            ],
            axis=1,
        )

    return judge


def by_marks(ask: Ask) -> Judge:
    def judge(answers, references=None):
        requests = [
            mark_messages(prompt, text, reference)
            for given in answers
            for prompt, text, reference in _rows(given, references)
        ]
        verdicts = ask(requests)
        marks = np.array([read_marks(verdict, OVERALL)[1] for verdict in verdicts])
        tell_unread(verdicts, ~np.isnan(marks))
        return marks.reshape(len(answers), -1).T

    return judge


def by_pairs(ask: Ask) -> Judge:
    """Return a judge that compares two answers; identical answers are a tie without a
    request."""

    def judge(answers, references=None):
        ours, theirs = answers
        rows = [
            (prompt, one, other, reference)
            for (prompt, one, reference), other in zip(
                _rows(ours, references), theirs.texts, strict=True
            )
        ]
        differ = [i for i, (_, one, other, _) in enumerate(rows) if one != other]
        requests = [pair_messages(*rows[i]) for i in differ]
        for i in differ:
            prompt, one, other, reference = rows[i]
            requests.append(pair_messages(prompt, other, one, reference))
        verdicts = ask(requests) if requests else []
        said = np.array([read_pair(verdict) for verdict in verdicts])
        tell_unread(verdicts, ~np.isnan(said))
        first, second = said.reshape(2, -1)
        won = np.full(len(rows), 0.5)
        won[differ] = (first + 1 - second) / 2
        return np.stack([won, 1 - won], axis=1)

    return judge


def _rows(answers: Answers, references: Sequence[str] | None):
    references = references or [""] * len(answers.texts)
    return zip(answers.prompts, answers.texts, references, strict=True)
