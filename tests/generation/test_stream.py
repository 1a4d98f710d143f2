"""Streaming gives what `respond` gives, with few programs."""

import dataclasses

import jax
import numpy as np
import pytest

from rlhf_jax.generation import rows, stream
from rlhf_jax.generation.responses import respond
from tests.generation.test_responses import SAMPLING
from tests.models.families import GMASK, START

SHORT = dataclasses.replace(SAMPLING, max_new_tokens=6)


@pytest.mark.parametrize("name", ["model", "chatglm_6b"])
def test_the_stream_is_the_response_to_its_prompt(name, request):
    model = request.getfixturevalue(name)
    prompt = [5, 6, 7, 8, GMASK, START] if name == "chatglm_6b" else [5, 6, 7]
    for seed in range(3):
        key = jax.random.key(seed)
        tokens = np.array([prompt], np.int32)
        out = respond(model, tokens, tokens >= 0, key, SHORT, samples=1, rows=1)
        expected = out.tokens[0, : out.lengths[0]].tolist()
        assert list(stream.stream(model, prompt, key, SHORT)) == expected


def test_prompts_of_similar_length_share_their_programs(model):
    key = jax.random.key(0)
    list(stream.stream(model, [5] * 3, key, SHORT))
    programs = rows.empty, rows.read_prompts, rows.decode_round
    before = [program._cache_size() for program in programs]
    for length in (1, 8, 40, 58):
        list(stream.stream(model, [5] * length, key, SHORT))
    assert [program._cache_size() for program in programs] == before


def test_a_prompt_without_room_for_its_answer_is_refused(model):
    with pytest.raises(ValueError, match=r"has 59 tokens.*of 64 has room for 58"):
        next(stream.stream(model, [5] * 59, jax.random.key(0), SHORT))
    with pytest.raises(ValueError, match="are empty"):
        next(stream.stream(model, [], jax.random.key(0), SHORT))
