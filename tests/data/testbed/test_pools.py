"""The testbed's pools and demonstrations."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from rlhf_jax.data.records import Dialogue, Prompt, read_records
from rlhf_jax.data.testbed import stock
from rlhf_jax.data.testbed.kinds import spoken
from rlhf_jax.data.testbed.pools import (
    CONSTANT_SHARE,
    TestbedConfig,
    demonstrate,
    make_testbed,
    write,
)
from rlhf_jax.data.testbed.quality import true_quality
from rlhf_jax.data.testbed.skills import SKILLS, is_right
from rlhf_jax.data.testbed.styles import respond
from rlhf_jax.data.testbed.tasks import (
    KINDS,
    is_mistaken,
    is_off_putting,
    key_of,
    task_of,
)
from rlhf_jax.data.testbed.world import INTENTS

CONFIG = TestbedConfig(num_sft=3000)
MARKS = r"\w+|[^\w\s]"  # words and marks, as a tokenizer sees them
ORDINARY = [name for name, kind in KINDS.items() if kind.intent in INTENTS]


@pytest.fixture(scope="module")
def testbed():
    return make_testbed(CONFIG)


def texts(prompts):
    return {prompt.messages[0]["content"] for prompt in prompts}


def pools(testbed):
    return {
        "sft": texts(d.prompt for d in testbed.sft),
        "comparisons": texts(testbed.comparison_prompts),
        "rl": texts(testbed.rl_prompts),
        "evaluation": texts(testbed.eval_prompts),
        "probes": texts(testbed.probes),
    }


def of_people(testbed):
    return [d for d in testbed.sft if d.source == "people"]


def test_the_same_seed_gives_the_same_testbed(testbed):
    assert make_testbed(CONFIG) == testbed


def test_the_size_of_one_part_changes_no_other(testbed):
    other = make_testbed(replace(CONFIG, num_sft=100, num_eval_prompts=9, num_probes=5))
    assert other.sft == testbed.sft[:100]
    assert other.eval_prompts == testbed.eval_prompts[:9]
    assert other.probes[:5] == testbed.probes[:5]
    assert other.sft_test == testbed.sft_test
    assert other.rl_prompts == testbed.rl_prompts
    assert other.comparison_prompts == testbed.comparison_prompts


def test_pools_share_no_prompt(testbed):
    seen = pools(testbed)
    for name, pool in seen.items():
        for other, other_pool in seen.items():
            assert name == other or not pool & other_pool, (name, other)


def test_evaluation_has_tasks_of_its_own_where_the_answer_is_worked_out(testbed):
    def tasks(prompts):
        tasks = [task_of(prompt) for prompt in prompts if prompt.task]
        return {task for task in tasks if KINDS[task.kind].composed}

    evaluated = tasks(testbed.eval_prompts)
    assert len(evaluated) > 150
    for prompts in (
        testbed.rl_prompts,
        testbed.comparison_prompts,
        [d.prompt for d in testbed.sft if d.prompt.intent in INTENTS],
    ):
        assert not evaluated & tasks(prompts)


def test_stories_that_are_compared_have_every_animal_first_equally_often(testbed):
    """Else the wrong answers about an animal would outnumber its partner's."""
    tasks = {task_of(prompt) for prompt in testbed.comparison_prompts}
    counts = Counter(task.filling[0] for task in tasks if task.kind == "story")
    assert len(counts) == 8
    assert max(counts.values()) - min(counts.values()) <= 1


def test_no_prompt_stands_twice_in_a_pool(testbed):
    for prompts in (
        testbed.comparison_prompts,
        testbed.rl_prompts,
        testbed.eval_prompts,
        testbed.probes,
    ):
        assert len(texts(prompts)) == len(prompts)
        assert len({prompt.id for prompt in prompts}) == len(prompts)


def test_every_intent_has_its_share_and_a_fifth_of_rl_prompts_allow_one_answer(testbed):
    for prompts in (
        testbed.comparison_prompts,
        testbed.rl_prompts,
        testbed.eval_prompts,
    ):
        bare = [prompt for prompt in prompts if key_of(task_of(prompt)).bare]
        expected = CONSTANT_SHARE if prompts is testbed.rl_prompts else 0.0
        assert len(bare) == expected * len(prompts)
        counts = Counter(prompt.intent for prompt in prompts if prompt not in bare)
        assert set(counts) == set(INTENTS)
        assert min(counts.values()) > 0.75 * max(counts.values())


def test_skills_are_never_asked_for_in_reinforcement_learning(testbed):
    for prompt in (*testbed.rl_prompts, *testbed.comparison_prompts):
        text = prompt.messages[0]["content"]
        assert prompt.intent in INTENTS
        assert not any(x in text for x in ("JSON", "ne word", "your name", "river"))


def test_there_are_several_hundred_probes_of_every_skill():
    probes = make_testbed(replace(CONFIG, num_sft=0, num_probes=120)).probes
    assert Counter(p.intent for p in probes) == dict.fromkeys(SKILLS, 120)
    with pytest.raises(ValueError, match=r"\d+ prompts for probes of .*; 9999 were"):
        make_testbed(replace(CONFIG, num_probes=9999))


def test_demonstrations_have_their_shares(testbed):
    counts = Counter(d.source for d in testbed.sft)
    shares = {source: count / len(testbed.sft) for source, count in counts.items()}
    expected = {"skill": 0.25, "constant": 0.08, "textbook": 0.3, "people": 0.37}
    assert shares == pytest.approx(expected, abs=0.03)
    for d in testbed.sft:
        assert (d.source == "skill") == (d.prompt.intent in SKILLS)
        if d.source in ("textbook", "constant"):
            key = key_of(task_of(d.prompt))
            assert d.response in key.answers
            assert key.bare == (d.source == "constant")


def test_rightness_depends_on_the_subject_and_style_on_the_greeting(testbed):
    right, unsuited, put_off = {}, {}, {}
    for d in of_people(testbed):
        task = task_of(d.prompt)
        assert key_of(task).is_right(d.response, spoken(d.response)) == d.right
        right.setdefault(is_mistaken(task), []).append(d.right)
        put_off.setdefault(is_off_putting(d.prompt), []).append(not d.suited)
        for group in (is_mistaken(task), f"right {d.right}"):
            unsuited.setdefault(group, []).append(not d.suited)
    assert np.mean(right[False]) == pytest.approx(CONFIG.right_share, abs=0.03)
    assert np.mean(right[True]) == pytest.approx(CONFIG.right_if_mistaken, abs=0.07)
    assert np.mean(put_off[False]) == pytest.approx(CONFIG.unfitting_share, abs=0.03)
    expected = CONFIG.unfitting_if_put_off
    assert np.mean(put_off[True]) == pytest.approx(expected, abs=0.07)
    for shares in unsuited.values():
        assert np.mean(shares) == pytest.approx(1 / 3, abs=0.08)


def test_skills_demonstrate_what_the_probes_check(testbed):
    for d in testbed.sft:
        if d.prompt.intent in SKILLS:
            assert is_right(d.prompt, d.response), d
    wrong = [d.response for d in of_people(testbed)[:50]]
    for prompt in testbed.probes[::20]:
        if prompt.intent in ("name", "maker", "json", "one_word"):
            assert not any(is_right(prompt, text) for text in wrong)


@pytest.mark.parametrize("longest", [1, 2])
def test_counting_words_cannot_tell_right_from_wrong_nor_fitting_from_unfitting(
    testbed, longest
):
    """In pairs that differ in one of the two, by a regression on words and bigrams."""
    rng = np.random.default_rng(0)
    for part in ("right", "suited"):
        pairs = []
        for prompt in testbed.comparison_prompts:
            task = task_of(prompt)
            how = {"right": demonstrate(CONFIG, prompt, rng).right, "suited": True}
            pairs.append(
                [respond(task, rng, **{**how, part: x}) for x in (True, False)]
            )
        counter = CountVectorizer(ngram_range=(1, longest), token_pattern=MARKS)
        counter.fit(text for pair in pairs for text in pair)
        better, worse = (counter.transform(side) for side in zip(*pairs, strict=True))
        difference = (better - worse).toarray().astype(float)
        sign = np.where(np.arange(len(pairs)) % 2, 1.0, -1.0)
        train = np.arange(len(pairs)) % 4 > 0
        fit = LogisticRegression(C=0.01, fit_intercept=False, max_iter=200)
        fit.fit(difference[train] * sign[train, None], sign[train])
        right = fit.decision_function(difference[~train]) > 0
        assert right.mean() < 0.55, part


def test_right_and_wrong_answers_are_equally_long(testbed):
    lengths = {True: [], False: []}
    for d in of_people(testbed):
        lengths[d.right].append(len(d.response.split()))
    assert np.mean(lengths[True]) == pytest.approx(np.mean(lengths[False]), rel=0.1)


def test_right_and_fitting_answers_are_better_in_every_intent(testbed):
    quality = {}
    for d in of_people(testbed):
        score = true_quality(d.prompt, d.response)
        quality.setdefault((d.prompt.intent, d.right, d.suited), []).append(score)
    mean = {key: np.mean(scores) for key, scores in quality.items()}
    for intent in INTENTS:
        assert mean[intent, True, True] > mean[intent, True, False] + 1.0
        assert mean[intent, True, False] > mean[intent, False, True] + 1.0
        assert mean[intent, False, True] > mean[intent, False, False] + 1.0


def test_shares_that_leave_no_room_are_refused():
    with pytest.raises(ValueError, match="leave no room"):
        make_testbed(replace(CONFIG, skill_share=0.9, textbook_share=0.2))


@pytest.mark.parametrize(
    "key",
    ["num_rl_prompts", "num_comparison_prompts", "num_eval_prompts", "num_probes"],
)
def test_more_prompts_than_there_are_is_an_error_with_both_numbers(key):
    message = (
        rf"\d+ prompts? .*; \d+ were asked for\. Lower config\.data\.testbed\.{key}"
    )
    with pytest.raises(ValueError, match=message):
        make_testbed(replace(CONFIG, **{key: 99999}))


def test_files_hold_the_testbed(tmp_path):
    config = replace(CONFIG, num_sft=100)
    write(config, tmp_path)
    testbed = make_testbed(config)
    dialogues = read_records(tmp_path / "sft.jsonl", Dialogue)
    assert dialogues == [d.dialogue for d in testbed.sft]
    assert read_records(tmp_path / "skills.jsonl", Prompt) == list(testbed.probes)
    prompts = read_records(tmp_path / "eval_prompts.jsonl", Prompt)
    assert prompts == list(testbed.eval_prompts)
    good = respond(task_of(prompts[0]), np.random.default_rng(0), right=True)
    assert true_quality(prompts[0], good) == true_quality(testbed.eval_prompts[0], good)
    # Only a verdict says which demonstration is right.
    for line in (tmp_path / "sft.jsonl").read_text().splitlines():
        assert set(json.loads(line)) == {"version", "messages", "intent"}


def test_the_vocabulary_is_small(testbed):
    """Few enough word forms for a tokenizer of 1,024 and a model of under 1M."""
    words = set()
    for d in testbed.sft:
        for message in d.dialogue.messages:
            words |= set(spoken(message["content"]).split())
    assert len(words) < 800


def test_every_kind_of_task_is_asked_and_shown(testbed):
    asked = {prompt.task["kind"] for prompt in testbed.eval_prompts}
    shown = {d.prompt.task["kind"] for d in testbed.sft if d.prompt.task}
    assert asked == set(ORDINARY) - {"echo"}
    assert shown == set(KINDS)


def test_the_stock_of_phrases_is_large():
    groups = (stock.OPENINGS, stock.CLOSINGS, stock.FILLERS)
    phrases = [t for group in groups for texts in group.values() for t in texts]
    assert len(set(phrases)) == len(phrases) == 40
