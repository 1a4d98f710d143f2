"""Prompts that take turns in few rows are answered as in one batch of all."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rlhf_jax.generation import continuous_batching as batching
from rlhf_jax.generation import generate
from rlhf_jax.generation.rollout import row_keys
from rlhf_jax.generation.sampling import Sampling
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.parallel.mesh import make_mesh
from tests.models.families import GMASK, MASK, START

SAMPLING = Sampling(
    max_new_tokens=10,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    min_new_tokens=0,
    stop_ids=(1, 2),
    pad_id=0,
    num_tokens=30,
)
KEY = jax.random.key(10)
STEPS = 3  # of a round: responses take several, and end anywhere in one


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch):
    monkeypatch.setattr(batching, "STEPS", STEPS)
    jax.clear_caches()  # of rounds of another length, and then of these
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(0)
    return [rng.integers(3, 30, n).tolist() for n in (8, 5, 1, 7, 3, 8, 2, 6, 4, 1, 5)]


@pytest.fixture(scope="module")
def prompts_of_6b():
    """Contexts of several lengths, with either mask token, and an answer begun."""
    rows = [[5, 6, 7, GMASK, START], [5, MASK, 6, START], [GMASK, START]]
    return [*rows, [9, GMASK, START, 13], *rows, [11, 12, MASK, START]]


def by_generate(model, prompts, sampling):
    width = max(map(len, prompts))
    tokens = np.array([[0] * (width - len(p)) + p for p in prompts], np.int32)
    mask = np.array([[False] * (width - len(p)) + [True] * len(p) for p in prompts])
    keys = row_keys(KEY, jnp.arange(len(prompts)))
    out = generate(model, tokens, mask, keys, sampling)
    rows = zip(np.array(out.tokens), out.lengths, strict=True)
    return [tokens[:length].tolist() for tokens, length in rows]


def by_turns(model, prompts, batch_size, sampling=SAMPLING):
    return batching.sample_responses(
        model, prompts, KEY, sampling, batch_size=batch_size
    )


def scanned(model):
    """The same model, its layers in one loop and its cache in one array."""
    config = dataclasses.replace(model.config, scan_layers=True)
    other = ChatGLM(config, rngs=nnx.Rngs(0))
    return jax.tree.unflatten(jax.tree.structure(other), jax.tree.leaves(model))


@pytest.mark.parametrize("batch_size", [1, 2, 4, 6, 16])
def test_every_prompt_is_answered_as_in_one_batch(model, prompts, batch_size):
    expected = by_generate(model, prompts, SAMPLING)
    lengths = {len(response) for response in expected}
    assert max(lengths) == 10  # cut
    assert {length % STEPS for length in lengths} == {0, 1, 2}
    assert by_turns(model, prompts, batch_size) == expected


@pytest.mark.parametrize(
    "changes", [{"min_new_tokens": 5}, {"temperature": 0.0}, {"max_new_tokens": 2}]
)
def test_of_every_way_to_sample(model, prompts, changes):
    sampling = dataclasses.replace(SAMPLING, **changes)
    expected = by_generate(model, prompts, sampling)
    assert by_turns(model, prompts, 4, sampling) == expected


def test_of_chatglm_6b_whose_rows_remember_their_prefix(chatglm_6b, prompts_of_6b):
    # Sharper, or a token would hang on little else than its random number.
    sharp = jax.tree.map(lambda x: 4 * x if x.ndim > 1 else x, chatglm_6b)
    expected = by_generate(sharp, prompts_of_6b, SAMPLING)
    assert by_turns(sharp, prompts_of_6b, 2) == expected


def test_of_layers_in_a_loop(model, prompts):
    expected = by_generate(model, prompts, SAMPLING)
    assert by_turns(scanned(model), prompts, 4) == expected


@pytest.mark.devices(8)
def test_on_a_mesh_with_as_many_programs(model, prompts):
    expected = by_generate(model, prompts, SAMPLING)
    with jax.set_mesh(make_mesh((2, 2, 2))):
        assert by_turns(model, prompts, 4) == expected
        programs = (
            batching._make_rows,
            batching._prefill_rows,
            batching._decode_round,
        )
        assert [program._cache_size() for program in programs] == [1, 1, 1]


def test_a_row_does_not_wait_for_the_longest_beside_it(model, prompts, monkeypatch):
    rounds, decode_round = [], batching._decode_round

    def counting(*args):
        rounds.append(args)
        return decode_round(*args)

    monkeypatch.setattr(batching, "_decode_round", counting)
    lengths = list(map(len, by_turns(model, prompts, 4)))
    batches = [lengths[i : i + 4] for i in range(0, len(lengths), 4)]
    assert len(rounds) < sum(-(-max(batch) // STEPS) for batch in batches)


def test_several_responses_to_a_prompt_stand_together(model, prompts):
    repeated = [prompt for prompt in prompts[:3] for _ in range(2)]
    flat = by_turns(model, repeated, 4)
    found = batching.sample_groups(
        model, prompts[:3], KEY, SAMPLING, count=2, batch_size=4
    )
    assert found == [flat[:2], flat[2:4], flat[4:]]
    assert found[0][0] != found[0][1]


def test_no_prompts_and_prompts_that_do_not_fit(model, prompts):
    assert by_turns(model, [], 4) == []
    with pytest.raises(ValueError, match="need a context of 68; the model has 64"):
        by_turns(model, prompts, 4, dataclasses.replace(SAMPLING, max_new_tokens=60))
