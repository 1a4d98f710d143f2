"""The rewards of a run: functions of a prompt and a response, and the reward model.

`Rewards` calls the functions, and adds the reward model's scores, which the caller
computes on the device. Rows are shared out between the processes of a run, except those
of the judge, which process 0 alone asks.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from rlhf_jax.data.chat_client import FREE_SETTINGS, read_service
from rlhf_jax.data.in_threads import in_threads, started
from rlhf_jax.data.records import Prompt, Response
from rlhf_jax.data.transport import check_url
from rlhf_jax.files import read_json, write_json
from rlhf_jax.rewards import own_file
from rlhf_jax.rewards.built_in import BUILT_IN, SERVICES
from rlhf_jax.rewards.guard import Reward, keeping_prints, values_of
from rlhf_jax.rewards.rows import Function
from rlhf_jax.rewards.spec import MODEL, Named, parse, uses_model
from rlhf_jax.shared_work import first_does, is_first, share_out
from rlhf_jax.training.cache import fingerprint
from rlhf_jax.training.metrics import Mean
from rlhf_jax.training.options import leaves

FAULTS = "reward_faults.json"  # in the workdir: what a fault of a function stopped
# Keys that change no reward of a function without faults: a run may resume with others.
FREE = (
    *("reward_timeout", "on_reward_error", "reward_options.max_retries"),
    *(f"reward_judge.{name}" for name in FREE_SETTINGS),
)
# Functions that are checked on every prompt before anything is computed.
CHECKED = tuple(name for name in BUILT_IN if name not in SERVICES)


class RewardError(ValueError):
    """A reward function failed, and `on_reward_error` is "stop"."""


class Values(NamedTuple):
    """The rewards of a batch by function, float32 [B] each, and the number of faults of
    each function that has any."""

    by_name: dict[str, np.ndarray]
    faults: dict[str, int]


class Scored(NamedTuple):
    """The scores of a batch, float32 [B]: the sum of its rewards by their weights; and
    its rewards by name, float32 [B] each."""

    scores: np.ndarray
    by_name: dict[str, np.ndarray]
    faults: dict[str, int]

    def faulty(self) -> dict[str, int]:
        """Return the number of faults of each function that has any, for a summary."""
        return {f"faults of {name}": count for name, count in self.faults.items()}


class Rewards:
    """The rewards that a config names. Every process of a run makes the same calls.

    Args:
        config: rewards, reward_options, reward_judge, reward_timeout, on_reward_error
            and max_response_tokens.
        workdir: the folder of the run, for the judge's answers.

    Attributes:
        uses_model: True if the reward model is one of the rewards.
        files: file of the user's -> hash of its content.

    Raises:
        ValueError, OSError: a name, a weight, a file or a service is wrong.
    """

    def __init__(self, config: ConfigDict, workdir: Path):
        self._named = parse(config.rewards)
        self._stops = config.on_reward_error == "stop"
        self._workdir = workdir
        self.uses_model = uses_model(config.rewards)
        files = {x.file for x in self._named if x.file}
        self.files = {file: own_file.content_hash(file) for file in sorted(files)}
        self._options = {
            key: value
            for key, value in leaves(config, "")
            if key.startswith((".reward_options", ".reward_judge"))
            and key[1:] not in FREE
        }
        self._functions = [
            _open(named, config, workdir)
            for named in self._named
            if named.name != MODEL or named.file
        ]

    @property
    def has_functions(self) -> bool:
        """True if there is any reward besides the reward model."""
        return bool(self._functions)

    @property
    def identity(self) -> dict[str, str]:
        """The fingerprint by which a cache of scores knows its rewards; none for the
        reward model alone, by whose weights it is known."""
        if self._named == (Named(MODEL, 1.0),):
            return {}
        record = [self._named, self.files, self._options]
        return {"set of rewards": fingerprint(record)}

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Refuse prompts without the fields that a built-in function reads, before
        anything is computed.

        Raises:
            RewardError: names the prompt and the field.
        """
        empty = [Response("", True, [0])] * len(prompts)
        for reward in self._functions:
            if reward.name in CHECKED and not reward.file:
                try:
                    reward.function(prompts, empty)
                except ValueError as error:
                    raise RewardError(f"config.rewards: {error}.") from None

    def of_functions(
        self, prompts: Sequence[Prompt], responses: Sequence[Response]
    ) -> Values:
        """Call all functions at the same time.

        Raises:
            RewardError: a function failed, and `on_reward_error` is "stop".
        """
        return self.begin(prompts, lambda: responses)()

    def begin(
        self,
        prompts: Sequence[Prompt],
        responses: Callable[[], Sequence[Response]],
    ) -> Callable[[], Values]:
        """Start to call all functions, in threads of this process; return what waits
        for them, as `of_functions`. The processes exchange rewards only then, so that
        meanwhile any program may run.

        Args:
            responses: makes the responses, if there are functions to read them.
        """
        if not self.has_functions:
            return lambda: Values({}, {})
        given = responses()
        alone = [x for x in self._functions if x.place == "judge"]
        shared = [x for x in self._functions if x.place != "judge"]
        every = np.arange(len(prompts))
        parts = np.array_split(every, jax.process_count())

        def call() -> tuple[list, list]:
            own = self._call(shared, prompts, given, parts[jax.process_index()])
            if not (alone and is_first()):
                return own, []
            return own, self._call(alone, prompts, given, every)

        future, _ = started(call)
        return lambda: self._collect(future, shared, alone, parts)

    def _collect(
        self,
        future: Future[tuple[list, list]],
        shared: Sequence[Reward],
        alone: Sequence[Reward],
        parts: Sequence[np.ndarray],
    ) -> Values:
        """Return the rewards of all processes."""
        try:
            told = share_out(lambda _: future.result()[0], parts)
            judged = first_does(lambda: future.result()[1]) if alone else []
        except ValueError as error:
            self._note_fault()
            raise RewardError(str(error)) from None
        by_name, faults = {}, {}
        # The parts of each function: [rewards, number of faults] of each process.
        parts_of = [*zip(*told, strict=True), *((part,) for part in judged)]
        for reward, outcomes in zip([*shared, *alone], parts_of, strict=True):
            rewards = [np.array(values, np.float32) for values, _ in outcomes]
            by_name[reward.name] = np.concatenate(rewards)
            faults[reward.name] = sum(count for _, count in outcomes)
        return Values(by_name, {name: n for name, n in faults.items() if n})

    def total(self, values: Values, model_scores: np.ndarray | None) -> Scored:
        """Add the rewards of a batch by their weights.

        Args:
            model_scores: the reward model's scores, float32 [B]; None without it.
        """
        by_name = values.by_name
        if self.uses_model:
            by_name = by_name | {MODEL: np.asarray(model_scores, np.float32)}
        terms = [np.float32(x.weight) * by_name[x.name] for x in self._named]
        scores = terms[0]
        for term in terms[1:]:
            scores = scores + term
        return Scored(scores, by_name, values.faults)

    def score(
        self,
        prompts: Sequence[Prompt],
        responses: Callable[[], Sequence[Response]],
        model_scores: Callable[[], np.ndarray | None],
    ) -> Scored:
        """Call the functions, and add all rewards by their weights.

        Args:
            responses: makes the responses, if there are functions to read them.
            model_scores: makes the reward model's scores, after the functions have
                ended: meanwhile a device may compute the scores.

        Raises:
            RewardError: as `of_functions`.
        """
        values = self.begin(prompts, responses)()
        return self.total(values, model_scores())

    def metrics(self, scored: Scored) -> dict:
        """Return the mean of each reward, "reward/NAME", and the number of its faults,
        "reward/NAME_faults" if faults do not stop the run; none for the reward model
        alone."""
        if not self.has_functions:
            return {}
        metrics: dict = {f"reward/{k}": Mean.of(x) for k, x in scored.by_name.items()}
        if not self._stops:
            for reward in self._functions:
                count = scored.faults.get(reward.name, 0)
                metrics[f"reward/{reward.name}_faults"] = float(count)
        return metrics

    def of_rows(self, scored: Scored, rows: int | slice | np.ndarray) -> dict:
        """Return the rewards of a row, or of some rows, by name, for samples; {} for
        the reward model alone."""
        if not self.has_functions:
            return {}
        return {"rewards": {k: x[rows].tolist() for k, x in scored.by_name.items()}}

    def may_change(self) -> dict[str, str]:
        """Return the user's files, by file their hash, that may change since a fault of
        a function stopped this run."""
        path = self._workdir / FAULTS
        return read_json(path) if path.is_file() else {}

    def _call(
        self,
        rewards: Sequence[Reward],
        prompts: Sequence[Prompt],
        responses: Sequence[Response],
        rows: np.ndarray,
    ) -> list:
        """Return [rewards of the rows, number of faults] of each function, for JSON."""
        prompts, responses = ([x[i] for i in rows] for x in (prompts, responses))
        if not prompts:
            return [[[], 0] for _ in rewards]
        with keeping_prints():
            outcomes = in_threads(
                [
                    lambda reward=reward: values_of(
                        reward, prompts, responses, first_only=self._stops
                    )
                    for reward in rewards
                ]
            )
        for reward, (_, faults) in zip(rewards, outcomes, strict=True):
            if faults:
                self._tell(reward, prompts, faults)
        return [[values.tolist(), len(faults)] for values, faults in outcomes]

    def _tell(
        self, reward: Reward, prompts: Sequence[Prompt], faults: dict[int, str]
    ) -> None:
        """Raise RewardError, or log the faults of a function."""
        row, said = next(iter(faults.items()))
        prompt = prompts[row].id
        message = f"The reward {reward.place} on the prompt {prompt!r}: {said}."
        if self._stops:
            raise RewardError(
                f"{message} Mend it and start the same command again: a run with "
                "checkpoints goes on from the newest. on_reward_error=zero gives such "
                "a response the reward 0 instead."
            )
        count, all_ = len(faults), len(prompts)
        logging.warning("%s %d of %d responses get 0.", message, count, all_)

    def _note_fault(self) -> None:
        """Write that the user's files may be mended."""
        first_does(write_json, self._workdir / FAULTS, self.files)


def _of_another_process(
    prompts: Sequence[Prompt], responses: Sequence[Response]
) -> np.ndarray:
    """Stand in, where it is never called, for a function that process 0 alone calls."""
    raise AssertionError


def _open(named: Named, config: ConfigDict, workdir: Path) -> Reward:
    if named.file:
        function = own_file.load(named.file, named.name)
    elif named.name == "judge":  # process 0 alone asks it
        made: list[Function] = []
        first_does(lambda: made.append(BUILT_IN["judge"](config, workdir)))
        function = made[0] if made else _of_another_process
    else:
        function = BUILT_IN[named.name](config, workdir)
    limit = None if named.place in SERVICES else config.reward_timeout
    return Reward(named.name, named.place, named.file, function, limit)


def check_options(config: ConfigDict, *, needs_model: bool = False) -> None:
    """Refuse rewards and options that cannot be, before anything is read or loaded.

    Args:
        needs_model: True refuses the reward "model" without a reward model, which a
            stage for trials takes with random weights.

    Raises:
        ValueError, OSError: names the option and says what to set instead.
    """
    names = {x.place for x in parse(config.rewards)}
    if config.reward_model and MODEL not in names:
        raise ValueError(
            f"config.reward_model={config.reward_model!r} is not among "
            f"{config.rewards=}: add model=1.0, or leave reward_model empty."
        )
    if needs_model and MODEL in names and not config.reward_model:
        raise ValueError(
            "config.reward_model is empty: name one, or rewards that are functions, as "
            "in config.rewards=right_number=1.0 (docs/rewards.md)."
        )
    options = config.reward_options
    if "judge" in names:
        read_service(config.reward_judge, key="config.reward_judge")
    if "http" in names:
        check_url(options.url, "config.reward_options.url")
    if "length_penalty" in names:
        limit = options.length_limit or config.max_response_tokens
        if options.length_buffer > limit:
            raise ValueError(
                f"reward_options.length_buffer={options.length_buffer} must be at most "
                f"the limit of {limit} tokens."
            )
