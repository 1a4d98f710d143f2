import dataclasses

import numpy as np
import py3langid
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_jax.data.cleaning.prompt_filters import (
    PromptRules,
    by_intent,
    by_quality,
    by_rule,
    language_share,
    near_duplicates,
)
from rlhf_jax.data.records import Prompt

RULES = PromptRules(
    min_characters=3, max_characters=200, languages=(), max_similarity=0.8
)


def ask(*texts: str) -> list[Prompt]:
    return [Prompt(t, ({"role": "user", "content": t},)) for t in texts]


LONG = "Please tell me in a few words why the sky over the sea is blue at noon"


@pytest.mark.parametrize(
    ("texts", "reasons"),
    [
        (["Hi", " Hi ", "Why?", "x" * 201], ["too short", "too short", "", "too long"]),
        (["Why me?", "why  ME？", "Why you?"], ["", "duplicate", ""]),
        ([LONG, f"{LONG}?", LONG[:40]], ["", "near-duplicate", ""]),
        (["写一首关于秋天的诗吧", "写一首关于秋天的诗"], ["", "near-duplicate"]),
    ],
)
def test_rules_give_the_first_reason_that_applies(texts, reasons):
    assert by_rule(ask(*texts), RULES) == reasons


def test_a_similarity_of_one_seeks_no_near_duplicates():
    rules = dataclasses.replace(RULES, max_similarity=1.0)
    assert by_rule(ask(LONG, f"{LONG}?"), rules) == ["", ""]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("What is the tallest mountain in the world?", False),
        ("请给我写一封关于请假的邮件", False),
        ("用英文翻译 hello world 这句话", False),
        ("法国、英国、西班牙、瑞士，其中任意2个国家相互接壤，是对的么", False),
        ("请将以下词语翻译为中文：in the pink、black tea", False),
        ("한국에서 가장 높은 산은 무엇입니까?", True),
        ("ok", False),  # too short to tell
        ("def f(x): return x", False),
        ("Schreibe ein Gedicht über den Herbst im Wald", True),
        ("Quelle est la plus haute montagne du monde ?", True),
        ("今日はとても寒いですね。晩ご飯に何を食べますか", True),
        ("Какая гора самая высокая в мире?", True),
        ("一一一一一一一一", False),  # the first of the Chinese characters
        ("鿿鿿鿿鿿鿿鿿鿿鿿", False),  # the last
        ("가가가가가가가가", True),
        ("ゟゟゟゟゟゟゟゟ", True),
    ],
)
def test_a_language_is_wrong_only_beyond_doubt(text, wrong):
    rules = dataclasses.replace(RULES, min_characters=1, languages=("zh", "en"))
    assert by_rule(ask(text), rules) == ["wrong language" if wrong else ""]
    assert by_rule(ask(text), RULES) in ([""], ["too short"])


def test_a_text_of_few_bytes_is_in_any_language():
    rules = dataclasses.replace(RULES, min_characters=1, languages=("zh", "en"))
    assert by_rule(ask("가" * 7, "나" * 8), rules) == ["", "wrong language"]


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("写" * 8 + "かか", "zh"),  # a quarter as many kana as Chinese characters
        ("写" * 7 + "かか", "ja"),  # more than that
        ("写" * 8 + "かか" + "a" * 39, "zh"),  # more than a fifth of the letters
        ("写かかか", "ja"),
        ("写가가가", "ko"),
        ("가가かか", "ko"),
        ("かかか가", "ja"),
    ],
)
def test_the_script_tells_chinese_japanese_and_korean(text, language):
    found = [x for x in ("zh", "ja", "ko") if language_share(text, [x]) == 1.0]
    assert found == [language]


def test_the_share_of_a_language_is_a_probability():
    text = "Schreibe ein Gedicht über den Herbst im Wald"
    both = language_share(text, ["de", "en"])
    assert 0.9 < language_share(text, ["de"]) <= both <= 1.0
    assert language_share(text, ["en"]) < 0.1
    assert language_share(text.replace("den Herbst", "山"), ["de"]) > 0.9
    every = [language for language, _ in py3langid.rank(text)]
    for any_text in (text, 50 * text, "de la"):
        assert language_share(any_text, every) == pytest.approx(1.0)


def test_a_text_as_long_as_its_limits_stays():
    rules = dataclasses.replace(RULES, min_characters=3, max_characters=5)
    found = by_rule(ask("ab", "abc", "abcde", "abcdef"), rules)
    assert found == ["too short", "", "", "too long"]


def test_the_same_question_after_another_history_is_another_prompt():
    history = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "x"})
    (short,) = ask("Tell me more, please, about that.")
    long = Prompt("2", (*history, *short.messages))
    rules = dataclasses.replace(RULES, max_similarity=1.0)
    assert by_rule([short, long, long], rules) == ["", "", "duplicate"]


def jaccard(a: str, b: str) -> float:
    parts = [{t[i : i + 5] for i in range(max(1, len(t) - 4))} for t in (a, b)]
    return len(parts[0] & parts[1]) / len(parts[0] | parts[1])


@settings(deadline=None)
@given(st.lists(st.text("ab ", max_size=30), max_size=12), st.sampled_from([0.5, 0.8]))
def test_nothing_below_the_limit_is_dropped_and_the_first_stays(texts, limit):
    near = near_duplicates(texts, limit)
    for i in np.flatnonzero(near):
        kept = [j for j in range(i) if not near[j]]
        assert max(jaccard(texts[i], texts[j]) for j in kept) > limit


@pytest.mark.parametrize(
    ("texts", "share"),
    [
        (["abcdefgh", "abcdef"], 0.5),  # two of four pieces of five characters
        (["abcdefgh", "abcdefgx"], 0.6),  # three of five
    ],
)
def test_only_what_is_more_alike_than_the_limit_is_a_near_duplicate(texts, share):
    for limit, expected in ((share, False), (share - 0.1, True)):
        assert near_duplicates(texts, limit).tolist() == [False, expected]


def test_a_text_shorter_than_a_piece_is_one_piece():
    assert near_duplicates(["abc", "xbc", "abc"], 0.3).tolist() == [False, False, True]


def test_nearly_all_near_duplicates_are_found():
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), 6)) for _ in range(3000)]
    texts = [" ".join(rng.choice(words, 20)) for _ in range(100)]
    changed = [f"{text[:-1]}z" for text in texts]  # Jaccard of about 0.93
    near = near_duplicates(texts + changed, 0.8)
    assert not near[:100].any()
    assert near[100:].mean() > 0.98


def test_what_is_only_somewhat_alike_stays():
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), 6)) for _ in range(3000)]
    texts = [rng.choice(words, 20).tolist() for _ in range(100)]
    changed = [[*text[:-3], *rng.choice(words, 3)] for text in texts]
    texts = [" ".join(text) for text in texts + changed]
    assert 0.7 < jaccard(texts[0], texts[100]) < 0.8
    assert not near_duplicates(texts, 0.8).any()


def test_quality_names_the_lowest_criterion():
    scores = np.array([[0.9, 0.4, 0.6], [0.1, 0.0, 0.9], [0.3, 0.9, 0.9], [np.nan] * 3])
    assert by_quality(scores, 0.4) == [
        "",
        "low semantics",
        "low intention",
        "no verdict",
    ]


@settings(deadline=None)
@given(
    st.lists(st.sampled_from("abc"), max_size=40),
    st.integers(1, 10),
    st.integers(0, 3),
)
def test_large_intents_are_cut_to_the_maximum_and_small_ones_kept(
    intents, maximum, seed
):
    reasons = by_intent(intents, maximum, seed)
    assert reasons == by_intent(intents, maximum, seed)
    for intent in set(intents):
        kept = [i for i, why in zip(intents, reasons, strict=True) if not why]
        assert kept.count(intent) == min(maximum, intents.count(intent))


@settings(deadline=None)
@given(
    st.lists(st.text(max_size=12), max_size=20),
    st.integers(0, 5),
    st.integers(5, 12),
    st.sampled_from([0.6, 1.0]),
)
def test_every_prompt_stays_or_has_a_reason_and_twice_changes_nothing(
    texts, least, most, similarity
):
    rules = PromptRules(least, most, (), similarity)
    prompts = ask(*texts)
    reasons = by_rule(prompts, rules)
    assert len(reasons) == len(prompts)
    kept = [p for p, why in zip(prompts, reasons, strict=True) if not why]
    assert not any(by_rule(kept, rules))
