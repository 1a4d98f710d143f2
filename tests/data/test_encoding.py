"""Encoding of records: omissions are counted, no response is cut, and a response that
generation cut gets no end token."""

import dataclasses

import pytest

from rlhf_jax.data.encoding import (
    encode_dialogues,
    encode_pairs,
    encode_prompts,
    response_ids,
    sampled_response,
)
from rlhf_jax.data.records import Comparison, Dialogue, Prompt, Response
from rlhf_jax.data.tokenizers.chat import (
    encode_dialogue,
    encode_prompt,
    encode_response,
)
from rlhf_jax.data.tokenizers.tokenizer import load_tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["one two three"], 300, folder)
    return load_tokenizer(folder)


def turn(role, content):
    return {"role": role, "content": content}


SYSTEM = turn("system", "Be kind.")
LAST = turn("user", "And now?")
TALK = (SYSTEM, turn("user", "one " * 20), turn("assistant", "two " * 20), LAST)


def comparison(a="good", b="bad", preference="a", messages=(LAST,)):
    return Comparison(Prompt("p", tuple(messages)), a, b, preference)


def encode(comparisons, tokenizer, prompt=64, response=16, **more):
    return encode_pairs(
        comparisons,
        tokenizer=tokenizer,
        max_prompt_tokens=prompt,
        max_response_tokens=response,
        **more,
    )


def test_every_unusable_pair_is_counted_by_its_reason(tokenizer):
    good = comparison(preference="b")
    kept, pairs, counts = encode(
        [
            good,
            comparison(preference="tie"),
            comparison(a=" \n"),
            comparison(a="bad"),
            comparison(a="good " * 40),
            comparison(messages=TALK),
        ],
        tokenizer,
    )
    assert kept == [good]
    chosen, rejected = (encode_response(x, tokenizer) for x in ("bad", "good"))
    assert pairs == [(encode_prompt([LAST], tokenizer), chosen, rejected)]
    assert counts == {
        "tie": 1,
        "empty response": 1,
        "identical responses": 1,
        "response too long": 1,
        "prompt too long": 1,
    }


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("side", ["a", "b"])
def test_only_a_response_that_ended_has_an_end_token_and_it_counts(
    ended, side, tokenizer
):
    """The end token counts towards the limit."""
    given = dataclasses.replace(comparison(), **{f"ended_{side}": ended})
    whole = [encode_response(text, tokenizer) for text in ("good", "bad")]
    expected = list(whole)
    if not ended:
        expected["ab".index(side)] = whole["ab".index(side)][:-1]
    limit = max(map(len, expected))
    _, ((_, *found),), _ = encode([given], tokenizer, response=limit)
    assert found == expected
    with pytest.raises(ValueError, match="response too long 1"):
        encode([given], tokenizer, response=limit - 1)


def test_a_sampled_response_is_trained_on_in_the_tokens_that_were_sampled(tokenizer):
    """The text "one" in three letters, which encoding would join; and half of a
    character, whose text would be encoded as another."""
    letters = [i for letter in "one" for i in tokenizer.encode(letter)]
    half = tokenizer.encode("é")[:1]
    assert tokenizer.encode("one") != letters
    for tokens, ended in (
        (letters, False),
        ([*letters, tokenizer.end_id], True),
        ([*letters, *half], False),
    ):
        response = sampled_response(tokens, tokenizer)
        assert (response.ended, response.tokens) == (ended, tokens)
        assert response_ids(response, tokenizer) == tokens


@pytest.mark.parametrize(
    "change",
    [
        {"text": "two"},  # edited since
        {"tokens": None},
        {"tokens": [299_999]},  # of a larger vocabulary
        {"ended": True},  # contradicts its tokens
    ],
)
def test_tokens_that_do_not_say_the_text_are_not_taken(change, tokenizer):
    letters = [i for letter in "one" for i in tokenizer.encode(letter)]
    given = dataclasses.replace(sampled_response(letters, tokenizer), **change)
    expected = encode_response(given.text, tokenizer)
    assert response_ids(given, tokenizer) == expected[: None if given.ended else -1]


def test_a_stop_token_within_a_response_is_not_taken(tokenizer):
    one = tokenizer.encode("one")
    given = Response("oneone", False, [*one, tokenizer.end_id, *one])
    assert tokenizer.end_id not in response_ids(given, tokenizer)


def test_a_long_prompt_loses_its_oldest_turns_and_the_response_nothing(tokenizer):
    given = [comparison(messages=TALK)]
    _, pairs, counts = encode(given, tokenizer, too_long="truncate_prompt")
    response = encode_response("good", tokenizer)
    assert pairs[0][:2] == (encode_prompt([SYSTEM, LAST], tokenizer), response)
    assert counts == {"kept with a truncated prompt": 1}
    whole = encode(given, tokenizer, prompt=400, too_long="truncate_prompt")
    assert whole[1][0][0] == encode_prompt(TALK, tokenizer)
    assert not whole[2]


def test_what_is_as_long_as_its_limit_is_kept_whole(tokenizer):
    prompt = encode_prompt(TALK, tokenizer)
    for too_long in ("drop", "truncate_prompt"):
        given = {"prompt": len(prompt), "too_long": too_long}
        _, pairs, counts = encode([comparison(messages=TALK)], tokenizer, **given)
        assert (pairs[0][0], counts) == (prompt, {})
    talk = Dialogue((*TALK, turn("assistant", "three")))
    whole = encode_dialogue(talk.messages, tokenizer)
    for too_long in ("drop", "truncate_prompt", "truncate_end"):
        found = encode_dialogues([talk], tokenizer, len(whole[0]), too_long)
        assert found == ([whole], {})


def test_prompts_that_fit_keep_their_order_and_their_ids(tokenizer):
    prompts = [Prompt(str(n), (turn("user", "one " * n),)) for n in (9, 1, 4, 30)]
    ids = [encode_prompt(prompt.messages, tokenizer) for prompt in prompts]
    limit = len(ids[0])
    assert encode_prompts(prompts, tokenizer, limit) == (prompts[:3], ids[:3])
    with pytest.raises(ValueError, match="None of 1 prompts fits max_prompt_tokens="):
        encode_prompts(prompts[:1], tokenizer, limit - 1)


def test_a_last_turn_that_does_not_fit_drops_the_pair(tokenizer):
    long = comparison(messages=[turn("user", "one " * 40)])
    _, pairs, counts = encode(
        [comparison(), long], tokenizer, too_long="truncate_prompt"
    )
    assert (len(pairs), counts) == (1, {"prompt too long": 1})


def test_when_nothing_is_left_the_reasons_are_told(tokenizer):
    with pytest.raises(ValueError, match=r"dropped: .*tie 2"):
        encode([comparison(preference="tie")] * 2, tokenizer)
    with pytest.raises(ValueError, match="must be 'drop' or 'truncate_prompt'"):
        encode([comparison()], tokenizer, too_long="cut")


def test_a_long_dialogue_loses_its_oldest_turns(tokenizer):
    talk = Dialogue((*TALK, turn("assistant", "three")))
    last = encode_dialogue([SYSTEM, *talk.messages[-2:]], tokenizer)
    long = Dialogue((LAST, turn("assistant", "two " * 99)))
    given = [talk, long]
    limit = len(last[0])
    kept, too_long = encode_dialogues(given, tokenizer, limit, "truncate_prompt")
    assert kept == [last]
    assert too_long == {
        "kept without its oldest turns": 1,
        "too long and dropped": 1,
    }
    with pytest.raises(ValueError, match="None of 1 dialogues fits"):
        encode_dialogues([talk], tokenizer, limit - 1, "truncate_prompt")


def test_a_thought_may_carry_no_loss(tokenizer):
    talk = Dialogue((LAST, turn("assistant", "<think>one</think>two")))
    ((ids, learned),), _ = encode_dialogues([talk], tokenizer, 99)
    ((same, after),), _ = encode_dialogues([talk], tokenizer, 99, thoughts=False)
    assert same == ids
    parts = [
        tokenizer.decode([i for i, x in zip(ids, mask, strict=True) if x])
        for mask in (learned, after)
    ]
    assert parts == ["<think>one</think>two", "two"]


@pytest.mark.parametrize("off", [1, 2, 5])
def test_what_is_cut_at_its_end_is_not_taught_to_stop(tokenizer, off):
    short = Dialogue((LAST, turn("assistant", "yes")))
    talk = Dialogue((LAST, turn("assistant", "two " * 20)))
    ids, mask = encode_dialogue(talk.messages, tokenizer)
    limit = len(ids) - off
    kept, too_long = encode_dialogues([talk, short], tokenizer, limit, "truncate_end")
    assert kept == [
        (ids[:limit], mask[:limit]),
        encode_dialogue(short.messages, tokenizer),
    ]
    assert too_long == {"kept without its end": 1}
    (cut, learned), whole = kept[0], kept[1]
    taught = [i for i, is_learned in zip(cut, learned, strict=True) if is_learned]
    assert taught and not set(taught) & set(tokenizer.stop_ids)
    assert whole[0][-1] in tokenizer.stop_ids and whole[1][-1]


def test_a_dialogue_whose_answer_lies_behind_the_limit_is_dropped(tokenizer):
    short = Dialogue((LAST, turn("assistant", "yes")))
    talk = Dialogue((turn("user", "one " * 99), turn("assistant", "two")))
    limit = len(encode_prompt(talk.messages[:1], tokenizer))
    for room, kept in ((0, 1), (1, 2)):
        found, _ = encode_dialogues(
            [talk, short], tokenizer, limit + room, "truncate_end"
        )
        assert len(found) == kept
    with pytest.raises(ValueError, match="must be 'drop', 'truncate_prompt' or 'trunc"):
        encode_dialogues([short], tokenizer, 64, "cut")
