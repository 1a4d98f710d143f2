"""The queue: its tasks, their distances, and no hint at the kind of a task."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_jax.data.annotation.tasks import (
    Candidates,
    make_tasks,
    read_known,
    read_tasks,
    transcript,
)
from rlhf_jax.data.records import (
    Comparison,
    Prompt,
    RecordError,
    Response,
    write_records,
)

PROMPT = Prompt("p", ({"role": "user", "content": "Why?"},))


def candidates(a, b):
    return Candidates(PROMPT, Response(a), Response(b))


@settings(deadline=None, max_examples=60)
@given(
    num_pairs=st.integers(1, 30),
    num_known=st.integers(0, 10),
    known_share=st.floats(0, 1),
    repeat_share=st.floats(0, 0.5),
    seed=st.integers(0, 9),
)
def test_every_pair_stands_once_and_repeats_come_half_a_queue_later_in_the_other_order(
    num_pairs, num_known, known_share, repeat_share, seed
):
    pairs = [candidates(f"a{i}", f"b{i}") for i in range(num_pairs)]
    known = [Comparison(PROMPT, f"x{i}", f"y{i}", "b") for i in range(num_known)]
    tasks = make_tasks(
        pairs, known, known_share=known_share, repeat_share=repeat_share, seed=seed
    )
    place = {task.id: i for i, task in enumerate(tasks)}
    assert [*place] == sorted(place)  # an id tells no more than the place in the queue
    fresh = [task for task in tasks if not task.repeat_of]
    asked = [task for task in fresh if not task.known_answer]
    assert sorted(t.response_a for t in asked) == sorted(p.a.text for p in pairs)
    sure = [task for task in fresh if task.known_answer]
    assert len(sure) == min(round(known_share * num_pairs), num_known)
    assert {task.known_answer for task in sure} <= {"b"}
    assert len({task.response_a for task in fresh}) == len(fresh)
    by_id = {task.id: task for task in tasks}
    for task in tasks:
        if task.repeat_of:
            original = by_id[task.repeat_of]
            assert task.shown == original.shown[::-1]
            assert not task.known_answer
            assert place[task.id] - place[original.id] >= len(fresh) / 2


def test_the_seed_decides_and_either_response_is_first_about_half_the_time(make_queue):
    assert make_queue(seed=3) == make_queue(seed=3)
    assert make_queue(seed=3) != make_queue(seed=4)
    first = [task.shown_first for task in make_queue(400).values()]
    assert 0.4 < first.count("a") / len(first) < 0.6


def test_pairs_with_nothing_to_judge_are_no_tasks():
    pairs = [
        candidates("same", "same"),
        candidates("x", " "),
        candidates("x", "y"),
    ]
    tasks = make_tasks(pairs, [], known_share=0.0, repeat_share=0.0, seed=0)
    assert [(task.response_a, task.response_b) for task in tasks] == [("x", "y")]
    with pytest.raises(ValueError, match="No prompt has two responses that differ"):
        make_tasks(pairs[:2], [], known_share=0.0, repeat_share=0.0, seed=0)


def test_what_was_seen_as_first_is_the_response_shown_first(make_queue):
    for task in make_queue().values():
        both = {"a": task.response_a, "b": task.response_b}
        assert (both[task.seen("1")], both[task.seen("2")]) == task.shown
        assert task.seen("tie") == "tie"


def test_tasks_come_back_from_their_file(make_queue, tmp_path):
    tasks = make_queue()
    cut = dataclasses.replace(tasks["task-000003"], ended_b=False, tokens_b=[5, 6])
    tasks["task-000003"] = cut
    write_records(tmp_path / "tasks.jsonl", tasks.values())
    assert read_tasks(tmp_path / "tasks.jsonl") == tasks


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shown_first": "left"}, r"line 2, field 'shown_first': must be one of"),
        ({"prompt": 3}, r"line 2, field 'prompt': must be an object, not number"),
        ({"response_b": None}, r"line 2, field 'response_b': is missing"),
        ({"known_answer": "tie"}, r"line 2, field 'known_answer'"),
        ({"ended_a": "no"}, r"line 2, field 'ended_a': must be true or false, not str"),
        ({"tokens_b": [1.5]}, r"line 2, field 'tokens_b': must be a list of token ids"),
        ({"settings_a": []}, r"line 2, field 'settings_a': must be an object"),
        ({"id": "task-000001"}, r"two tasks with the id 'task-000001'"),
        ({"repeat_of": "task-9"}, r"'task-000002' repeats 'task-9', which does not"),
    ],
)
def test_a_broken_task_is_named(change, message, make_queue, tmp_path):
    path = tmp_path / "tasks.jsonl"
    write_records(path, make_queue().values())
    lines = path.read_text().splitlines()
    lines[1] = json.dumps({**json.loads(lines[1]), **change})
    path.write_text("\n".join(lines))
    with pytest.raises(RecordError, match=message):
        read_tasks(path)


def test_a_known_answer_is_never_a_tie(tmp_path):
    write_records(tmp_path / "k.jsonl", [Comparison(PROMPT, "x", "y", "tie")])
    with pytest.raises(RecordError, match=r"must not be a tie, as it is for .* 'p'"):
        read_known(tmp_path / "k.jsonl")


def test_a_transcript_says_who_speaks_where_more_than_one_does():
    assert transcript(PROMPT) == "Why?"
    more = (*PROMPT.messages, {"role": "assistant", "content": "So."}, *PROMPT.messages)
    assert transcript(Prompt("q", more)) == "User: Why?\n\nAssistant: So.\n\nUser: Why?"
