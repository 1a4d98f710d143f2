"""Assignment of tasks to several annotators who work at once."""

import dataclasses
import threading
import time
import unicodedata
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime

from rlhf_jax.data.annotation.answers import Answer, AnswerLog, comparisons
from rlhf_jax.data.annotation.tasks import Task

REPEAT_DISTANCE = 10  # fewest answers between a task and its repeat, if possible
MAX_NAME = 64  # longest name, in characters


@dataclasses.dataclass
class Lease:
    """A place at a task, reserved for the annotator whose screen shows the task."""

    task: str  # id of the task
    started: float  # clock reading in seconds when the task last came on the screen
    ends: float  # clock reading in seconds when the lease runs out


class Assignment:
    """A queue that hands out tasks and takes answers; safe to call from threads.

    A task has a place for each of `annotators_per_task` annotators. A repeat goes to
    those who answered its original, `REPEAT_DISTANCE` answers later where possible. The
    place of an annotator who skips a task goes to another annotator.
    """

    def __init__(
        self,
        tasks: dict[str, Task],
        log: AnswerLog,
        *,
        annotators_per_task: int,
        lease_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Continue from the answers in the log.

        Args:
            lease_seconds: the seconds for which a task on a screen is reserved.

        Raises:
            ValueError: the log answers other tasks than these, or one of these twice.
        """
        if annotators_per_task < 1:
            raise ValueError(f"{annotators_per_task=} must be at least 1.")
        if lease_seconds <= 0:
            raise ValueError(f"{lease_seconds=} must be more than 0.")
        try:
            comparisons(tasks, log.answers)
        except ValueError as error:
            raise ValueError(f"{log.path}: {error}") from None
        self._tasks = tasks
        self._log = log
        self._places = annotators_per_task
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._leases: dict[str, Lease] = {}  # leases by annotator
        # The tasks each annotator has answered or skipped, with their order from 0.
        self._seen: dict[str, dict[str, int]] = defaultdict(dict)
        self._saved: dict[tuple[str, str], tuple] = {}  # choices by task and annotator
        self._answered: dict[str, set[str]] = defaultdict(set)  # annotators by task
        self._open = dict(tasks)  # tasks with a place that is not answered yet
        for answer in log.answers:
            self._count(answer)

    def next_task(self, annotator: str) -> Task | None:
        """Lease a task to the annotator and return it; None if no task is left."""
        with self._lock:
            now = self._clock()
            lease = self._leases.get(annotator)
            if lease is None or lease.ends <= now:
                task = self._choose(annotator, now)
                if task is None:
                    self._leases.pop(annotator, None)
                    return None
                lease = self._leases[annotator] = Lease(task, now, 0.0)
            lease.started = now  # the time away from the page is not counted as work
            lease.ends = now + self._lease_seconds
            return self._tasks[lease.task]

    def save(
        self,
        task: str,
        annotator: str,
        preference: str,
        criteria: dict[str, str] | None = None,
        *,
        both_bad: bool = False,
    ) -> bool:
        """Save an answer; return True once the answer is on disk.

        The same answer sent twice is saved once. False means that the answer is not
        saved: the annotator has answered otherwise before, perhaps in another window,
        or the lease ran out and another annotator has the last place.

        Raises:
            ValueError: the task does not exist.
            OSError: the answer could not be written; nothing is changed.
        """
        with self._lock:
            if task not in self._tasks:
                raise ValueError(f"There is no task {task!r}.")
            if task in self._seen[annotator]:
                saved = self._saved[task, annotator]
                return saved == (preference, criteria, both_bad)
            now = self._clock()
            if not self._has_place(task, annotator, now):
                return False
            lease = self._leases.get(annotator)
            ours = lease is not None and lease.task == task
            answer = Answer(
                task,
                annotator,
                preference,
                criteria,
                round(now - lease.started, 2) if ours else None,
                datetime.now(UTC).isoformat(timespec="seconds"),
                both_bad,
            )
            self._log.append(answer)
            self._count(answer)
            if ours:
                del self._leases[annotator]
            return True

    def task(self, id: str) -> Task:
        """Return the task of this id; raise ValueError if the id is unknown."""
        if id not in self._tasks:
            raise ValueError(f"There is no task {id!r}.")
        return self._tasks[id]

    def progress(self, annotator: str) -> tuple[int, int, int]:
        """Return the counts of this annotator's answers, of all answers so far, and of
        the answers when all is done."""
        with self._lock:
            own = len(self._seen[annotator])
            done = sum(map(len, self._answered.values()))
            return own, done, self._places * len(self._tasks)

    def _choose(self, annotator: str, now: float) -> str | None:
        seen = self._seen[annotator]
        too_soon = None
        for task in self._open.values():
            if task.id in seen or not self._has_place(task.id, annotator, now):
                continue
            if task.repeat_of:
                if annotator not in self._answered[task.repeat_of]:
                    continue
                if len(seen) - seen[task.repeat_of] < REPEAT_DISTANCE:
                    too_soon = too_soon or task.id
                    continue
            return task.id
        return too_soon

    def _has_place(self, task: str, annotator: str, now: float) -> bool:
        others = sum(
            lease.task == task and lease.ends > now
            for name, lease in self._leases.items()
            if name != annotator
        )
        return len(self._answered[task]) + others < self._places

    def _count(self, answer: Answer) -> None:
        seen = self._seen[answer.annotator]
        seen[answer.task] = len(seen)
        saved = (answer.preference, answer.criteria, answer.both_bad)
        self._saved[answer.task, answer.annotator] = saved
        if answer.preference != "skip":
            self._answered[answer.task].add(answer.annotator)
            if len(self._answered[answer.task]) >= self._places:
                self._open.pop(answer.task, None)


def annotator_name(text: str) -> str:
    """Normalise an annotator's name: "  Ann Lee" and "ann lee" are the same.

    Raises:
        ValueError: the name is empty, too long, or has control characters.
    """
    name = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise ValueError(f"Sign in with a name of 1 to {MAX_NAME} characters.")
    return name
