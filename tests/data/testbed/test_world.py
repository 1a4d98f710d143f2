"""The testbed's pools and demonstrations."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from rlhf_jax.data.records import Dialogue, Prompt, read_records
from rlhf_jax.data.testbed import tables
from rlhf_jax.data.testbed.capabilities import is_identity, is_right_json_answer
from rlhf_jax.data.testbed.demonstrations import respond
from rlhf_jax.data.testbed.kinds import spoken
from rlhf_jax.data.testbed.quality import true_quality
from rlhf_jax.data.testbed.tasks import INTENTS, KINDS, key_of, task_of
from rlhf_jax.data.testbed.world import TestbedConfig, make_testbed, write

CONFIG = TestbedConfig(num_sft=3000)
MODES = ("good", "padded", "sloppy")


@pytest.fixture(scope="module")
def world():
    return make_testbed(CONFIG)


def texts(prompts):
    return {prompt.messages[0]["content"] for prompt in prompts}


def pools(world):
    return {
        "sft": texts(d.prompt for d in world.sft),
        "comparisons": texts(world.comparison_prompts),
        "rl": texts(world.rl_prompts),
        "evaluation": texts(world.eval_prompts),
        "identity probes": texts(world.identity_probes),
        "json probes": texts(world.json_probes),
    }


def test_the_same_seed_gives_the_same_world(world):
    assert make_testbed(CONFIG) == world


def test_another_seed_gives_another_world(world):
    other = make_testbed(replace(CONFIG, seed=1))
    assert other.sft != world.sft
    assert other.eval_prompts != world.eval_prompts


def test_the_size_of_one_part_changes_no_other(world):
    other = make_testbed(replace(CONFIG, num_sft=100, num_rl_prompts=10, num_probes=5))
    assert other.sft == world.sft[:100]
    assert other.rl_prompts == world.rl_prompts[:10]
    assert other.json_probes == world.json_probes[:5]
    assert other.sft_test == world.sft_test
    assert other.eval_prompts == world.eval_prompts
    assert other.comparison_prompts == world.comparison_prompts


def test_pools_share_no_prompt(world):
    seen = pools(world)
    for name, pool in seen.items():
        for other, other_pool in seen.items():
            assert name == other or not pool & other_pool, (name, other)


def test_no_prompt_stands_twice_in_a_pool(world):
    for prompts in (world.comparison_prompts, world.rl_prompts, world.eval_prompts):
        assert len(texts(prompts)) == len(prompts)
        assert len({prompt.id for prompt in prompts}) == len(prompts)


def test_every_intent_has_its_share_of_every_pool(world):
    for prompts in (world.comparison_prompts, world.rl_prompts, world.eval_prompts):
        counts = Counter(prompt.intent for prompt in prompts)
        assert set(counts) == set(INTENTS)
        assert max(counts.values()) - min(counts.values()) <= 1


def test_capabilities_are_never_asked_for_in_reinforcement_learning(world):
    questions = texts([*world.rl_prompts, *world.comparison_prompts])
    assert not any("JSON" in text for text in questions)
    assert not any("name?" in text or "Who are" in text for text in questions)


def test_modes_have_their_shares(world):
    counts = Counter(d.mode for d in world.sft)
    expected = {"good": 0.36, "padded": 0.27, "sloppy": 0.27}
    expected |= {"identity": 0.04, "json": 0.06}
    for mode, share in expected.items():
        assert counts[mode] / len(world.sft) == pytest.approx(share, abs=0.03)


def test_shares_that_do_not_add_up_are_refused():
    with pytest.raises(ValueError, match="add up to 1"):
        make_testbed(replace(CONFIG, good_share=0.9))


def test_more_prompts_than_there_are_is_an_error_with_both_numbers():
    with pytest.raises(ValueError, match=r"\d+ prompts for .*; 99999 were asked for"):
        make_testbed(replace(CONFIG, num_rl_prompts=99999))


def test_files_hold_the_world(world, tmp_path):
    write(CONFIG, tmp_path)
    dialogues = read_records(tmp_path / "sft.jsonl", Dialogue)
    assert dialogues == [d.dialogue for d in world.sft]
    prompts = read_records(tmp_path / "eval_prompts.jsonl", Prompt)
    assert prompts == list(world.eval_prompts)
    good = respond(key_of(task_of(prompts[0])), "good", np.random.default_rng(0))
    assert true_quality(prompts[0], good) == true_quality(world.eval_prompts[0], good)


def test_training_files_do_not_say_which_demonstration_is_good(tmp_path):
    write(replace(CONFIG, num_sft=200), tmp_path)
    for line in (tmp_path / "sft.jsonl").read_text().splitlines():
        assert set(json.loads(line)) == {"version", "messages", "intent"}


def test_the_vocabulary_is_small():
    """Few enough word forms for a tokenizer of 1,024 and a model of under 1M."""
    words = set()
    for d in make_testbed(replace(CONFIG, num_sft=6000)).sft:
        for message in d.dialogue.messages:
            words |= set(spoken(message["content"]).split())
    assert len(words) < 800


def test_good_demonstrations_beat_padded_ones_beat_sloppy_ones(world):
    for intent in INTENTS:
        mean = {
            mode: np.mean(
                [
                    true_quality(d.prompt, d.response)
                    for d in world.sft
                    if d.mode == mode and d.prompt.intent == intent
                ]
            )
            for mode in MODES
        }
        assert mean["good"] > mean["padded"] + 1.5, intent
        assert mean["padded"] > mean["sloppy"] + 1.5, intent


def test_length_explains_little_of_quality(world):
    quality, length = {}, {}
    for d in world.sft:
        if d.mode in MODES:
            score = true_quality(d.prompt, d.response)
            quality.setdefault(d.prompt.intent, []).append(score)
            length.setdefault(d.prompt.intent, []).append(len(d.response.split()))
    for intent in INTENTS:
        correlation = np.corrcoef(quality[intent], length[intent])[0, 1]
        assert abs(correlation) < 0.45, intent
    together = [np.concatenate(list(part.values())) for part in (quality, length)]
    assert abs(np.corrcoef(*together)[0, 1]) < 0.4


def test_a_policy_that_is_always_good_beats_the_mixture_by_far(world):
    """P(win) - P(lose) of a good answer against a demonstration, same prompt."""
    rng = np.random.default_rng(0)
    margins = []
    for d in world.sft:
        if d.mode in MODES:
            good = respond(key_of(task_of(d.prompt)), "good", rng)
            gain = true_quality(d.prompt, good) - true_quality(d.prompt, d.response)
            margins.append(np.sign(gain))
    assert np.mean(margins) > 0.5


def test_identity_and_json_demonstrations_do_what_the_probes_check(world):
    for d in world.sft:
        if d.mode == "identity":
            assert is_identity(d.response, CONFIG.model_name)
        if d.mode == "json":
            assert is_right_json_answer(d.prompt, d.response)


def test_every_kind_of_task_is_asked_and_shown(world):
    asked = {prompt.task["kind"] for prompt in world.eval_prompts}
    shown = {d.prompt.task["kind"] for d in world.sft if d.prompt.task}
    assert asked == shown == set(KINDS)


def test_no_word_of_courtesy_or_padding_is_an_answer():
    """ "Happy to help!" once spoiled every question about opposites, and "thought"
    in a filler those about past tenses: they name rivals of the right answer."""
    rng = np.random.default_rng(0)
    phrases = (*tables.OPENINGS, *tables.CLOSINGS, *tables.FILLERS, *tables.RUDE)
    around = " ".join(phrases)
    for name, kind in KINDS.items():
        for index in rng.permutation(len(kind.fillings))[:60]:
            key = key_of((name, *kind.fillings[index]))
            for answer in key.answers:
                text = " ".join([around, answer, *key.details, around])
                assert key.credit(text, spoken(text)) == 1.0, text
