"""A queue of tasks: fresh ones, known answers and repeats."""

import pytest

from rlhf_jax.data.annotation.tasks import Candidates, make_tasks
from rlhf_jax.data.records import Comparison, Prompt, Response


def prompt(name: str) -> Prompt:
    return Prompt(name, ({"role": "user", "content": f"Question {name}?"},))


@pytest.fixture
def make_queue():
    """`make_queue(40, seed=1)`: the tasks by id."""

    def make(num_pairs=40, num_known=20, known_share=0.25, repeat_share=0.2, seed=0):
        pairs = [
            Candidates(
                prompt(f"p{i}"),
                Response(f"a{i}", ended=i % 2 == 0, tokens=[i, 1]),
                Response(f"b{i}"),
                {"sample": 0},
                {"sample": 1},
            )
            for i in range(num_pairs)
        ]
        known = [
            Comparison(prompt(f"k{i}"), f"good {i}", f"bad {i}", "a")
            for i in range(num_known)
        ]
        tasks = make_tasks(
            pairs, known, known_share=known_share, repeat_share=repeat_share, seed=seed
        )
        return {task.id: task for task in tasks}

    return make
