"""Assignment of tasks: places, leases, repeats, many annotators at once."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from rlhf_jax.data.annotation.answers import Answer, AnswerLog, read_answers
from rlhf_jax.data.annotation.assignment import (
    REPEAT_DISTANCE,
    Assignment,
    annotator_name,
)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def start(tmp_path):
    """Assignments on one log; starting again is what a restarted server does."""
    logs = []

    def make(tasks, places=1, clock=None):
        for log in logs:
            log.close()
        logs[:] = [AnswerLog(tmp_path / "answers.jsonl")]
        return Assignment(
            tasks,
            logs[0],
            annotators_per_task=places,
            lease_seconds=60,
            clock=clock or Clock(),
        )

    yield make
    for log in logs:
        log.close()


def work(assignment, annotator, choose=lambda task: "a"):
    """Answer until no task is left; return the tasks in the order of their arrival."""
    done = []
    while (task := assignment.next_task(annotator)) is not None:
        assert assignment.save(task.id, annotator, choose(task))
        done.append(task)
    return done


def test_a_task_is_kept_for_whoever_has_it_on_the_screen(start, make_queue):
    assignment = start(make_queue())
    ann = assignment.next_task("ann")
    assert assignment.next_task("ann") == ann  # the page was loaded again
    assert assignment.next_task("bob") != ann


def test_each_task_gets_as_many_answers_as_it_has_places(start, make_queue, tmp_path):
    tasks = make_queue()
    assignment = start(tasks, places=2)
    for annotator in ("ann", "bob", "cy", "dee"):
        work(assignment, annotator)
    fresh = [task.id for task in tasks.values() if not task.repeat_of]
    count = Counter(answer.task for answer in read_answers(tmp_path / "answers.jsonl"))
    assert {count[task] for task in fresh} == {2}


def test_a_lease_that_ran_out_goes_to_somebody_else_and_a_late_answer_is_refused(
    start, make_queue
):
    clock = Clock()
    assignment = start(make_queue(), clock=clock)
    task = assignment.next_task("ann")
    clock.now = 61.0
    assert assignment.next_task("bob") == task
    assert not assignment.save(task.id, "ann", "a")  # the place is bob's
    assert assignment.save(task.id, "bob", "b")
    assert assignment.next_task("ann") != task


def test_a_late_answer_counts_while_its_place_is_free(start, make_queue, tmp_path):
    clock = Clock()
    assignment = start(make_queue(), clock=clock)
    task = assignment.next_task("ann")
    clock.now = 100.0
    assert assignment.save(task.id, "ann", "a")
    assert read_answers(tmp_path / "answers.jsonl")[0].seconds == 100.0


def test_the_same_answer_sent_twice_is_kept_once(start, make_queue, tmp_path):
    assignment = start(make_queue())
    task = assignment.next_task("ann")
    assert assignment.save(task.id, "ann", "a", {"safety": "b"})
    assert assignment.save(task.id, "ann", "a", {"safety": "b"})  # a second click
    assert [a.preference for a in read_answers(tmp_path / "answers.jsonl")] == ["a"]


@pytest.mark.parametrize(
    "second", [("b", {"safety": "b"}), ("a", {"safety": "a"}), ("a",), ("skip",)]
)
@pytest.mark.parametrize("restarted", [False, True])
def test_another_answer_from_a_second_window_is_told(
    start, make_queue, tmp_path, second, restarted
):
    tasks = make_queue()
    assignment = start(tasks)
    task = assignment.next_task("ann")
    assert assignment.next_task("ann") == task  # in the second window
    assert assignment.save(task.id, "ann", "a", {"safety": "b"})
    if restarted:
        assignment = start(tasks)
    assert not assignment.save(task.id, "ann", *second)
    (answer,) = read_answers(tmp_path / "answers.jsonl")
    assert (answer.preference, answer.criteria) == ("a", {"safety": "b"})


def test_the_time_away_from_a_task_is_no_work(start, make_queue, tmp_path):
    clock = Clock()
    assignment = start(make_queue(), clock=clock)
    task = assignment.next_task("ann")
    clock.now = 40.0
    assert assignment.next_task("ann") == task  # the page was opened again
    clock.now = 47.5
    assert assignment.save(task.id, "ann", "a")
    assert read_answers(tmp_path / "answers.jsonl")[0].seconds == 7.5


def test_what_one_skips_goes_to_another_and_never_back(start, make_queue):
    assignment = start(make_queue(repeat_share=0.0))
    task = assignment.next_task("ann")
    assignment.save(task.id, "ann", "skip")
    assert task not in work(assignment, "ann")
    assert work(assignment, "bob") == [task]


def test_repeats_go_to_whoever_answered_the_original_and_not_soon(start, make_queue):
    tasks = make_queue()
    assignment = start(tasks, places=2)
    for annotator in ("ann", "bob", "cy"):
        done = [task.id for task in work(assignment, annotator)]
        for i, task in enumerate(done):
            original = tasks[task].repeat_of
            if original:
                assert i - done.index(original) > REPEAT_DISTANCE


def test_whoever_skips_a_task_is_not_asked_its_repeat(start, make_queue):
    done = work(start(make_queue()), "ann", lambda _: "skip")
    assert done and not any(task.repeat_of for task in done)


def test_a_repeat_comes_even_where_nothing_stands_between(start, make_queue):
    tasks = make_queue(num_pairs=2, num_known=0, repeat_share=0.5)
    done = work(start(tasks), "ann")
    assert [task.id for task in done] == [*tasks]
    assert done[-1].repeat_of


def test_a_restarted_server_goes_on_where_it_was(start, make_queue):
    tasks = make_queue()
    assignment = start(tasks)
    for _ in range(7):
        assignment.save(assignment.next_task("ann").id, "ann", "b")
    shown = assignment.next_task("ann")
    again = start(tasks)
    assert again.progress("ann") == assignment.progress("ann") == (7, 7, len(tasks))
    assert again.next_task("ann") == shown
    assert again.save(shown.id, "ann", "a")  # from a page that knows of no restart


def test_a_log_of_other_tasks_is_refused(start, make_queue, tmp_path):
    log = AnswerLog(tmp_path / "answers.jsonl")
    log.append(Answer("task-999999", "ann", "a"))
    log.close()
    with pytest.raises(
        ValueError,
        match=r"answers.jsonl: answer 1: .*'task-999999', which is not a ",
    ):
        start(make_queue())


def test_an_unknown_task_is_refused(start, make_queue):
    with pytest.raises(ValueError, match="no task 'task-999999'"):
        start(make_queue()).save("task-999999", "ann", "a")


def test_twelve_annotators_at_once_get_no_place_twice(start, make_queue, tmp_path):
    tasks = make_queue(num_pairs=120, num_known=60)
    assignment = start(tasks, places=3)

    def annotate(number):
        return work(assignment, f"ann {number}", lambda task: "ab"[number % 2])

    with ThreadPoolExecutor(12) as pool:
        done = list(pool.map(annotate, range(12)))
    answers = read_answers(tmp_path / "answers.jsonl")
    assert len(answers) == sum(map(len, done))
    assert len({(a.task, a.annotator) for a in answers}) == len(answers)
    count = Counter(answer.task for answer in answers)
    for task in tasks.values():
        assert count[task.id] == 3 if not task.repeat_of else count[task.id] <= 3


@pytest.mark.parametrize("text", ["", "  ", "x" * 65, "a\x00b", "a\u202eb"])
def test_what_is_no_name_is_refused(text):
    with pytest.raises(ValueError, match="a name of 1 to 64 characters"):
        annotator_name(text)


def test_one_person_is_one_name_however_it_is_written():
    assert annotator_name("  Ann   Lee ") == annotator_name("ANN LEE") == "ann lee"
    assert annotator_name("王小明") == "王小明"
