"""The watch over PPO: what a judge says of the answers to the held-out prompts."""

from pathlib import Path

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from rlhf_jax.evaluation.over_optimisation import (
    Fall,
    common_openings,
    fall_of_judge,
    repeated_sentences,
    standardised,
)
from rlhf_jax.evaluation.rollouts import Evaluated, rollout_scores
from rlhf_jax.models.heads import ScoreModel
from rlhf_jax.parallel.sharding import fetch, shard_batch, to_memory
from rlhf_jax.shared_work import is_first
from rlhf_jax.training import cache
from rlhf_jax.training.checkpoints import Checkpoints
from rlhf_jax.training.metrics import Mean, Writer
from rlhf_jax.training.workdir import due

FILE = "judge_scores.npz"  # in the workdir
JUDGED = "eval/judge_scores"  # the metric by which a checkpoint is the best


class OverOptimisedError(ValueError):
    """The score that the policy learns from rises while the judge's falls."""


class Watch:
    """The scores of all evaluations, by what the policy learns from and by a judge: a
    reward model that nothing is trained against.

    Args:
        config: judge_model, stop_over_optimised, offload_frozen, total_steps,
            eval_every and save_every.
        judge: the reward model; with `offload_frozen` it lies in the host's memory
            between evaluations.
        reference: the reference policy's answers, which stand at step 0 and give the
            zero and the unit of both scores.

    Attributes:
        first: the metrics of step 0.
        warning: the log line about the last evaluation, "" where all is well.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: Path,
        judge: ScoreModel,
        reference: Evaluated,
    ):
        self._config, self._workdir = config, workdir
        total = config.total_steps
        due_at = [x for x in range(1, total + 1) if due(x, config.eval_every, total)]
        self._steps = np.array([0, *due_at])
        self._length = reference.rollout.response_mask.sum() or 1
        # Both scores at each evaluation; NaN where there was none.
        shape = (len(self._steps), 2, len(reference.texts))
        self._scores = np.full(shape, np.nan, np.float32)
        self.warning = ""
        self.first = self._look(0, reference, judge)
        rest = "pinned_host" if config.offload_frozen else "device"
        self._judge = to_memory(judge, rest)

    def resume(self, step: int) -> None:
        """Read the scores up to `step` of the run that goes on."""
        saved = cache.read(self._workdir / FILE, {}, self._scores.shape, holes=True)
        if saved is not None:
            is_past = (self._steps > 0) & (self._steps <= step)
            self._scores[is_past] = saved[is_past]

    def look(self, step: int, answers: Evaluated) -> dict[str, Mean | float]:
        """Judge the policy's answers after `step`; return the metrics. A log line warns
        of over-optimisation."""
        metrics = self._look(step, answers, to_memory(self._judge, "device"))
        cache.write(self._workdir / FILE, self._scores, {})
        if self.warning and is_first():
            logging.warning("%s", self.warning)
        return metrics

    def best_step(self) -> int:
        """Return the step of the evaluation of the policy that the judge scores
        highest; 0 before the first."""
        means = self._scores[1:, 1].mean(axis=-1)
        is_there = np.isfinite(means)
        if not is_there.any():
            return 0
        return int(self._steps[1:][is_there][means[is_there].argmax()])

    def stop_if_asked(self, writer: Writer, checkpoints: Checkpoints) -> None:
        """End an over-optimised run, with `stop_over_optimised`. The checkpoint that
        the judge scores highest is kept.

        Raises:
            OverOptimisedError: says what was seen and what to do.
        """
        if not (self.warning and self._config.stop_over_optimised):
            return
        writer.close()
        checkpoints.close()
        raise OverOptimisedError(
            f"{self.warning} With stop_over_optimised=False the same command goes on."
        )

    def _look(
        self, step: int, answers: Evaluated, judge: ScoreModel
    ) -> dict[str, Mean | float]:
        judged = fetch(rollout_scores(judge, shard_batch(answers.rollout)))
        self._scores[self._steps == step] = answers.scores, judged
        known = np.isfinite(self._scores).all(axis=(1, 2))
        score, judge_score = (
            standardised(self._scores[known, i], self._scores[0, i]) for i in range(2)
        )
        fall = fall_of_judge(score, judge_score)
        self.warning = ""
        if fall is not None and fall.is_over_optimised:
            self.warning = self._said(step, int(self._steps[known][fall.best]), fall)
        length = answers.rollout.response_mask.sum() / self._length
        repeated = list(map(repeated_sentences, answers.texts))
        return {
            JUDGED: Mean.of(judged),
            "watch/scores": Mean.of(score[-1]),
            "watch/judge_scores": Mean.of(judge_score[-1]),
            "watch/gap": Mean.of(score[-1] - judge_score[-1]),
            "watch/judge_fall": 0.0 if fall is None else fall.errors,
            "watch/over_optimised": float(bool(self.warning)),
            "watch/length": float(length),
            "watch/common_openings": common_openings(answers.texts),
            "watch/repeated_sentences": Mean.of(repeated),
        }

    def _said(self, step: int, best: int, fall: Fall) -> str:
        """Return what was seen after `step` and what to do; `best` is the step since
        which the judge's score fell."""
        kept = self.best_step()
        take = ""
        if self._config.save_every and kept < step:
            take = f"Take {self._workdir}/checkpoints/best, of step {kept}. "
        return (
            f"Step {step} of {self._workdir}: over-optimisation. Since step {best}"
            f"{' (the reference)' * (best == 0)} the score by the judge, "
            f"{self._config.judge_model}, fell by {fall.judge:.2f} ({fall.errors:.1f} "
            f"standard errors), while the score learned from rose by {fall.score:.2f}, "
            f"in standard deviations of the reference's answers. {take}For another run "
            "raise kl_coef, lower total_steps, or train a reward model on comparisons "
            "of this policy's answers."
        )
