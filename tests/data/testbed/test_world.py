"""Worlds differ by their seed, and hold together: names, facts, language, manners."""

from collections import Counter

import pytest

from rlhf_jax.data.testbed import stock
from rlhf_jax.data.testbed.kinds import spoken
from rlhf_jax.data.testbed.pools import TestbedConfig, make_testbed
from rlhf_jax.data.testbed.tasks import (
    KINDS,
    Task,
    key_of,
    kinds_of,
    question,
    task_of,
)
from rlhf_jax.data.testbed.world import INTENTS, World, partner, world_of

SEEDS = (100, 101, 102)
TABLES = (
    "capitals",
    "foods",
    "rivers",
    "emblems",
    "terms",
    "calls",
    "luma_words",
    "pasts",
    "homes",
)


def asked_and_answered(seed):
    """All (task, right answer) pairs of a world's prompts, in one wording."""
    testbed = make_testbed(TestbedConfig(seed=seed, num_sft=0, num_sft_test=0))
    prompts = (
        *testbed.comparison_prompts,
        *testbed.rl_prompts,
        *testbed.eval_prompts,
        *testbed.probes,
    )
    tasks = [task_of(prompt) for prompt in prompts if prompt.task]
    return {(task.kind, task.filling, key_of(task).answers) for task in tasks}


def test_two_worlds_share_under_5_percent_of_tasks_and_answers():
    one, other = map(asked_and_answered, SEEDS[:2])
    assert len(one) > 1000
    assert 0 < len(one & other) < 0.05 * min(len(one), len(other))


def test_the_same_seed_gives_the_same_world():
    one, again = World(100), World(100)
    for field in (*TABLES, "people", "registers", "greetings", "sums"):
        assert getattr(one, field) == getattr(again, field), field


def test_the_order_of_words_and_the_registers_differ_between_worlds():
    worlds = [world_of(seed) for seed in range(100, 130)]
    orders = {
        tuple(
            world.in_luma(one, verb, other).split().index(word)
            for word in (world.luma[one], world.luma[f"{verb}s"], world.luma[other])
        )
        for world in worlds
        for one, other, verb in [(*world.animals[:2], world.verbs[0])]
    }
    assert len(orders) == 6
    assert len({tuple(world.registers.items()) for world in worlds}) > 8


@pytest.mark.parametrize("seed", SEEDS)
def test_each_register_suits_half_of_the_intents(seed):
    counts = Counter(world_of(seed).registers[intent] for intent in INTENTS)
    assert counts == {stock.FORMAL: 4, stock.WARM: 4}


@pytest.mark.parametrize("seed", SEEDS)
def test_no_answer_is_another_ones_and_partners_are_each_others(seed):
    world = world_of(seed)
    for name in TABLES:
        table = getattr(world, name)
        assert len(set(table.values())) == len(table), name
        for subject in table:
            other = partner(subject, list(table))
            assert other != subject and partner(other, list(table)) == subject


@pytest.mark.parametrize("seed", SEEDS)
def test_a_mistaken_subject_has_a_mistaken_partner(seed):
    """Else a word would be a wrong answer more often than a right one."""
    world = world_of(seed)
    for name, kind in KINDS.items():
        for filling in list(kind.fillings(world))[:40]:
            subject, subjects = kind.subject(world, *filling)
            assert not subjects or subject in subjects, name
        if kind.intent == "open_question":
            one, other = world.countries[:2]
            assert kind.subject(world, one) == kind.subject(world, other)


def test_more_are_mistaken_about_sums_than_about_stories():
    for seed in SEEDS:
        world = world_of(seed)
        sums, stories = (
            len(world.mistaken(intent, tuple(subjects))) / len(subjects)
            for intent, subjects in (
                ("mathematics", world.goods),
                ("writing", world.animals),
            )
        )
        assert (sums, stories) == (2 / 5, 2 / 8)


@pytest.mark.parametrize("kind", KINDS)
def test_every_wording_shows_all_that_an_answer_needs(kind):
    world = world_of(100)
    fillings = list(KINDS[kind].fillings(world))
    asked = {}
    for filling in fillings[:: max(1, len(fillings) // 50)]:
        task = Task(100, kind, tuple(filling))
        for wording in range(3):
            text = question(task, wording)
            assert asked.setdefault(text, filling) == filling


def test_no_phrase_around_an_answer_is_an_answer():
    """A filler that names a rival of the right answer would void it."""
    groups = (stock.OPENINGS, stock.CLOSINGS, stock.FILLERS)
    around = " ".join(t for group in groups for texts in group.values() for t in texts)
    for seed in SEEDS:
        for intent in INTENTS:
            for name in kinds_of(intent):
                fillings = list(KINDS[name].fillings(world_of(seed)))
                for filling in fillings[:: max(1, len(fillings) // 20)]:
                    key = key_of(Task(seed, name, tuple(filling)))
                    for answer in key.answers:
                        text = " ".join([around, answer, around])
                        assert key.is_right(text, spoken(text)), text
