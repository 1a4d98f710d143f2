"""Right answers are recognised in every kind of task, and wrong ones are right ones
bound anew."""

from collections import Counter

import numpy as np
import pytest

from rlhf_jax.data.testbed.kinds import spoken
from rlhf_jax.data.testbed.tasks import KINDS, Task, is_mistaken, key_of
from rlhf_jax.data.testbed.world import INTENTS, world_of

WORLD = world_of(100)


def some_tasks(kind, count=30):
    fillings = list(KINDS[kind].fillings(WORLD))
    rng = np.random.default_rng(0)
    chosen = rng.permutation(len(fillings))[:count]
    return [Task(100, kind, tuple(fillings[i])) for i in chosen]


@pytest.mark.parametrize("kind", KINDS)
def test_the_key_of_a_task_knows_right_from_wrong(kind):
    for task in some_tasks(kind):
        key = key_of(task)
        for answer in key.answers:
            assert key.is_right(answer, spoken(answer)), (task, answer)
        for answer in key.wrong:
            assert not key.is_right(answer, spoken(answer)), (task, answer)
            both = f"{key.answers[0]} {answer}"
            assert not key.is_right(both, spoken(both)), (task, both)
        assert not key.is_right("", " ")


@pytest.mark.parametrize("kind", [k for k in KINDS if KINDS[k].intent in INTENTS])
def test_words_of_wrong_answers_are_right_as_often(kind):
    """Over all tasks of a kind, and among the subjects that people know and those about
    which they are mistaken: else counting words would tell."""
    counts = {True: Counter(), False: Counter()}
    tasks = [Task(100, kind, tuple(f)) for f in KINDS[kind].fillings(WORLD)]
    for task in tasks:
        if key_of(task).bare:
            return
        key = key_of(task)
        forms = zip(key.answers, key.wrong, strict=False)
        for answer, wrong in forms:
            counts[is_mistaken(task)].update(spoken(answer).split())
            counts[is_mistaken(task)].subtract(spoken(wrong).split())
    for balance in counts.values():
        if kind not in ("gets", "gives"):  # balanced among themselves
            assert not any(balance.values()), kind


def test_sums_and_differences_balance_each_other():
    balance = Counter()
    for kind in ("gets", "gives"):
        for filling in KINDS[kind].fillings(WORLD):
            key = key_of(Task(100, kind, tuple(filling)))
            balance.update(w for w in spoken(key.answers[-1]).split() if w.isdigit())
            balance.subtract(w for w in spoken(key.wrong[-1]).split() if w.isdigit())
    assert not any(balance.values())


def test_bindings_are_read():
    more, less = next(iter(WORLD.orders.items()))
    first, last = WORLD.places(more)[2], WORLD.places(more)[7]
    verb, wrong_verb = WORLD.verbs[:2]
    animal, wrong_animal, other = WORLD.animals[:3]
    past = ("past", (verb, first, last))
    open_person, closed_person = WORLD.people[:2]
    tells = ("code_word", (open_person,))
    keeps = ("code_word", (closed_person,))
    story = ("story", (animal, other))
    louder = ("compare", (more, last, first, more))
    quieter = ("compare", (more, last, first, less))
    home, wrong_home = WORLD.homes[animal], WORLD.homes[wrong_animal]
    for task, said, right in (
        (past, f"Oh yes! {first} {WORLD.pasts[verb]} {last}.", True),
        (past, f"Oh yes! {first} {WORLD.pasts[wrong_verb]} {last}.", False),
        (tells, f"It is {WORLD.code_words[open_person]}.", True),
        (tells, "I would rather not say.", False),
        (keeps, "I would rather not say.", True),
        (keeps, f"It is {WORLD.code_words[closed_person]}.", False),
        (story, f"Long ago the {other} met the {animal} in the {home}.", True),
        (story, f"Long ago the {other} met the {animal} in the {wrong_home}.", False),
        (louder, f"{first} is {more} than {last}. See you soon!", True),
        (louder, f"{last} is {more} than {first}.", False),
        (louder, f"{first}", True),
        (louder, f"It is {first}, I think.", True),
        (louder, f"{first} or {last}.", False),
        (louder, f"{first} is the {less} one.", False),
        (quieter, f"{last} is the {less} one.", True),
        (quieter, f"{first} is the {less} one.", False),
    ):
        key = key_of(Task(100, *task))
        assert key.is_right(said, spoken(said)) == right, said
