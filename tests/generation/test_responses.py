"""Responses through few rows equal those that are sampled one by one."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rlhf_jax.batches import PromptBatch
from rlhf_jax.data.batching import pad_left
from rlhf_jax.generation import responses as responses_
from rlhf_jax.generation import rows as rows_
from rlhf_jax.generation import scoring
from rlhf_jax.generation.responses import Responses, respond, sample_responses
from rlhf_jax.generation.rollout import rollout
from rlhf_jax.generation.sampling import Sampling
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.quantise import quantise
from rlhf_jax.parallel.mesh import make_mesh
from tests.generation.one_by_one import one_by_one
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
    monkeypatch.setattr(responses_, "STEPS", STEPS)


@pytest.fixture
def all_sizes(monkeypatch):
    """The ring has 3, 5 and then 10 slots, and the rows are halved, to two at least."""
    monkeypatch.setattr(responses_, "SHORTEST_RING", 2)
    monkeypatch.setattr(responses_, "FEWEST_ROWS", 2)


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(0)
    return [rng.integers(3, 30, n).tolist() for n in (8, 5, 1, 7, 3, 8, 2, 6, 4, 1, 5)]


@pytest.fixture(scope="module")
def prompts_of_6b():
    """Contexts of several lengths, with either mask token, and an answer begun."""
    rows = [[5, 6, 7, GMASK, START], [5, MASK, 6, START], [GMASK, START]]
    return [*rows, [9, GMASK, START, 13], [11, 12, MASK, START]]


@pytest.fixture(scope="module")
def sharp_6b(chatglm_6b):
    """Sharper, or a token would depend on little else than its random number."""
    return jax.tree.map(lambda x: 4 * x if x.ndim > 1 else x, chatglm_6b)


def answer(model, prompts, sampling=SAMPLING, *, samples=1, rows=0, **others):
    tokens, mask = pad_left(prompts, max(map(len, prompts)), 0)
    return respond(
        model, tokens, mask, KEY, sampling, samples=samples, rows=rows, **others
    )


def check_same(found: Responses, expected: Responses):
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.lengths, expected.lengths)
    np.testing.assert_array_equal(found.ended, expected.ended)
    np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-4)
    assert found.done.all()


def other_config(model, **fields):
    """The same weights in a model of another config."""
    config = dataclasses.replace(model.config, **fields)
    other = ChatGLM(config, rngs=nnx.Rngs(0))
    return jax.tree.unflatten(jax.tree.structure(other), jax.tree.leaves(model))


@pytest.mark.gpu
@pytest.mark.parametrize(("samples", "rows"), [(1, 1), (1, 4), (4, 4), (4, 32)])
def test_every_response_is_that_of_its_prompt_and_number(
    model, prompts, samples, rows, all_sizes, monkeypatch
):
    """Also where rows move together, and fewer of them then share a prompt."""
    layouts, resize = set(), rows_.resize

    def noting(rows, takes, prompts, *, slots):
        layouts.add((len(prompts), len(takes) // len(prompts)))
        return resize(rows, takes, prompts, slots=slots)

    monkeypatch.setattr(rows_, "resize", noting)
    prompts = prompts[:8]
    stops = tuple(range(6)) if samples > 1 else SAMPLING.stop_ids
    sampling = dataclasses.replace(SAMPLING, stop_ids=stops)
    expected = one_by_one(model, prompts, KEY, sampling, samples=samples)
    assert {length % STEPS for length in expected.lengths.tolist()} == {0, 1, 2}
    assert 0 < expected.ended.sum() < len(expected.ended)
    found = answer(model, prompts, sampling, samples=samples, rows=rows)
    check_same(found, expected)
    assert rows < 32 or any(1 < share < samples for _, share in layouts)


@pytest.mark.parametrize(
    "changes",
    [
        {"min_new_tokens": 5},
        {"temperature": 0.0},
        {"max_new_tokens": 2},
        {"stop_ids": tuple(range(30))},  # every response is one token
    ],
)
def test_of_every_way_to_sample(model, prompts, changes):
    sampling = dataclasses.replace(SAMPLING, **changes)
    expected = one_by_one(model, prompts, KEY, sampling, samples=1)
    check_same(answer(model, prompts, sampling, rows=4), expected)
    assert (expected.lengths >= changes.get("min_new_tokens", 1)).all()


@pytest.mark.parametrize("fields", [{"scan_layers": True}, {"window": 6}])
def test_of_layers_in_a_loop_and_of_sliding_windows(model, prompts, fields):
    model = other_config(model, **fields)
    expected = one_by_one(model, prompts, KEY, SAMPLING, samples=2)
    check_same(answer(model, prompts, samples=2, rows=4), expected)


@pytest.mark.parametrize("rows", [2, 8])
def test_of_chatglm_6b_whose_prompts_have_a_prefix(sharp_6b, prompts_of_6b, rows):
    expected = one_by_one(sharp_6b, prompts_of_6b, KEY, SAMPLING, samples=3)
    check_same(answer(sharp_6b, prompts_of_6b, samples=3, rows=rows), expected)


@pytest.mark.devices(8)
@pytest.mark.parametrize(("samples", "rows"), [(2, 16)])
def test_on_a_mesh(model, prompts, samples, rows, all_sizes):
    expected = one_by_one(model, prompts[:8], KEY, SAMPLING, samples=samples)
    with jax.set_mesh(make_mesh((2, 2, 2))):
        found = answer(model, prompts[:8], samples=samples, rows=rows)
    check_same(found, expected)


def test_numbers_alone_tell_responses_to_one_prompt_apart(model, prompts):
    numbers = np.array([7, 70, 8, 80])
    both = answer(model, prompts[:2], samples=2, numbers=numbers)
    other = answer(model, prompts[1::-1], samples=2, numbers=numbers[[2, 3, 0, 1]])
    assert (both.tokens[[2, 3, 0, 1]] == other.tokens).all()
    assert (both.tokens[0] != both.tokens[1]).any()


def test_a_row_does_not_wait_for_the_longest_beside_it(
    model, prompts, monkeypatch, all_sizes
):
    rounds, decode_round = [], rows_.decode_round

    def counting(decoder, rows, *args, **options):
        rounds.append(len(rows.live))
        return decode_round(decoder, rows, *args, **options)

    monkeypatch.setattr(rows_, "decode_round", counting)
    lengths = answer(model, prompts, rows=4).lengths
    batches = [lengths[i : i + 4] for i in range(0, len(lengths), 4)]
    assert len(rounds) < sum(-(-max(batch) // STEPS) for batch in batches)
    assert set(rounds) == {4, 2}  # in the end the last two move together


def test_a_prompt_is_read_once_for_all_its_responses(model, prompts, monkeypatch):
    read, read_prompts = [], rows_.read_prompts

    def counting(model, rows, places, tokens, mask):
        read.extend(tokens[places < len(rows.prompt_ends)].tolist())
        assert rows.prompts.mask.shape[0] * 4 == len(rows.live)
        return read_prompts(model, rows, places, tokens, mask)

    monkeypatch.setattr(rows_, "read_prompts", counting)
    answer(model, prompts, samples=4, rows=44)
    assert sorted(read) == sorted(pad_left(prompts, 8, 0)[0].tolist())


def test_memory_is_in_proportion_to_what_is_written(model, prompts, monkeypatch):
    """Responses of 3 tokens in the mean, of 48 at most: the ring grows to what the
    longest of them needs, and by then few rows are left."""
    monkeypatch.setattr(responses_, "SHORTEST_RING", 2)
    monkeypatch.setattr(responses_, "FEWEST_ROWS", 2)
    sampling = dataclasses.replace(
        SAMPLING, max_new_tokens=48, stop_ids=tuple(range(9)), temperature=2.0
    )
    caches, decode_round = [], rows_.decode_round

    def counting(decoder, rows, *args, **options):
        stored = jax.tree.leaves((rows.cache.keys, rows.cache.values))
        caches.append((rows.cache.length, sum(x.nbytes for x in stored)))
        return decode_round(decoder, rows, *args, **options)

    monkeypatch.setattr(rows_, "decode_round", counting)
    lengths = answer(model, prompts[:8], sampling, samples=2).lengths
    slot = 2 * 2 * 16 * 4  # keys and values, layers, head dim, bytes
    assert caches[0] == (3, 16 * 3 * slot)
    assert caches[-1][0] < 2 * (lengths.max() + STEPS) < 48
    assert max(size for _, size in caches) < 16 * 48 * slot / 4
    assert responses_.ring_sizes(8192) == [256 * 2**i for i in range(6)]


def test_few_programs_whatever_the_lengths(model, prompts, all_sizes, monkeypatch):
    seen, decode_round = set(), rows_.decode_round

    def noting(decoder, rows, *args, **options):
        count = len(rows.prompt_ends)
        seen.add((count, len(rows.live) // count))
        return decode_round(decoder, rows, *args, **options)

    monkeypatch.setattr(rows_, "decode_round", noting)
    jax.clear_caches()
    answer(model, prompts[:8], samples=2, rows=16)
    answer(model, prompts[:8][::-1], samples=2, rows=16)
    answer(model, prompts[3:], samples=2, rows=16)
    sizes = [x._cache_size() for x in (rows_.read_prompts, rows_.empty)]
    assert sizes == [1, 1]
    layouts = responses_.layouts(responses_.Layout(8, 2), unit=1)
    assert layouts == [(8, 2), (4, 2), (8, 1), (2, 2), (4, 1)]
    on_four = responses_.layouts(responses_.Layout(8, 2), unit=4)
    assert on_four == [(8, 2), (4, 2), (8, 1), (4, 1)]
    possible = len(responses_.ring_sizes(10)) * len(layouts)
    assert possible == 15
    assert 3 <= decode_round._cache_size() <= possible
    assert seen <= set(layouts)


@pytest.mark.parametrize(
    ("samples", "mesh"),
    [(1, None), (2, None), pytest.param(2, (2, 2, 2), marks=pytest.mark.devices(8))],
)
def test_responses_that_were_begun_go_on(model, prompts, samples, mesh, all_sizes):
    """When two prompts are done, the others stop; then they go on, with other prompts
    before and after them."""
    with jax.set_mesh(make_mesh(mesh)) if mesh else contextlib.nullcontext():
        first = answer(model, prompts[:5], samples=samples, rows=8, enough=2)
    done = first.done.reshape(5, samples).all(axis=1)
    assert 2 <= done.sum() < 5
    assert (first.lengths[~first.done] > 0).any()
    (rest,) = np.nonzero(np.repeat(~done, samples))
    count = 6 * samples + len(rest)
    begun = responses_.no_responses(count, SAMPLING)
    for x, y in zip(*map(jax.tree.leaves, (begun, first)), strict=True):
        x[samples : samples + len(rest)] = y[rest]
    left = [
        prompts[5],
        *(p for p, d in zip(prompts[:5], done, strict=True) if not d),
        *prompts[6:],
    ]
    number = np.arange(len(prompts) * samples)
    new = number[5 * samples :]
    numbers = np.concatenate([new[:samples], rest, new[samples:]])
    with jax.set_mesh(make_mesh(mesh)) if mesh else contextlib.nullcontext():
        found = answer(
            model, left, samples=samples, rows=4, numbers=numbers, begun=begun
        )
    whole = one_by_one(model, left, KEY, SAMPLING, samples=samples, numbers=numbers)
    check_same(found, whole)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("temperature", "change"), [(1.0, None), (0.7, None), (1.0, quantise)]
)
def test_sampler_and_trainer_compute_the_same_logprobs(
    model, prompts, temperature, change
):
    model = change(model) if change else model
    sampling = dataclasses.replace(SAMPLING, temperature=temperature)
    out = answer(model, prompts[:5], sampling)
    trainer = scoring.response_logprobs(
        model,
        *map(jnp.asarray, pad_left(prompts[:5], 8, 0)),
        jnp.asarray(out.tokens[:, None]),
        jnp.asarray(out.mask[:, None]),
        temperature=temperature,
        num_tokens=30,
        chunk_size=0,
    ).logprobs[:, 0]
    assert np.abs(np.where(out.mask, out.logprobs - trainer, 0.0)).max() < 1e-4


def test_responses_as_lists_stand_by_prompt(model, prompts):
    flat = answer(model, prompts[:3], samples=2)
    found = sample_responses(model, prompts[:3], KEY, SAMPLING, samples=2, rows=4)
    ids = [x[:n].tolist() for x, n in zip(flat.tokens, flat.lengths, strict=True)]
    assert found == [ids[:2], ids[2:4], ids[4:]]
    assert sample_responses(model, [], KEY, SAMPLING, samples=2, rows=4) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, m: t.__setitem__((0, 3), 32), "Token 32 in row 0"),
        (lambda t, m: t.__setitem__((4, 7), -1), "outside the vocabulary of 32"),
        (lambda t, m: m.__setitem__(2, False), r"Rows \[2\] are empty"),
        (lambda t, m: m.__setitem__((0, 2), False), r"rows \[0\] have holes"),
    ],
)
def test_bad_prompts_are_refused_before_anything_is_compiled(
    model, prompts, change, message, monkeypatch
):
    monkeypatch.setattr(rows_, "empty", None)
    tokens, mask = pad_left(prompts, 8, 0)
    change(tokens, mask)
    with pytest.raises(ValueError, match=message):
        respond(model, tokens, mask, KEY, SAMPLING, samples=1, rows=0)


def test_what_exceeds_the_context_is_refused(model, prompts):
    with pytest.raises(ValueError, match="need a context of 68; the model has 64"):
        answer(model, prompts, dataclasses.replace(SAMPLING, max_new_tokens=60))


def test_a_rollout_has_the_responses_of_its_batch_in_their_order(model, prompts):
    batch = PromptBatch(*pad_left(prompts[:4], 8, 0), np.array([10, 3, 12, 11]))
    found = rollout(model, batch, KEY, SAMPLING, samples=2)
    numbers = np.array([20, 21, 6, 7, 24, 25, 22, 23])
    expected = answer(model, prompts[:4], samples=2, numbers=numbers)
    np.testing.assert_array_equal(found.responses, expected.tokens)
    np.testing.assert_array_equal(found.response_mask, expected.mask)
    np.testing.assert_array_equal(found.logprobs, expected.logprobs)
    np.testing.assert_array_equal(found.ended, expected.ended)
    np.testing.assert_array_equal(found.prompts[::2], batch.prompts)
    np.testing.assert_array_equal(found.prompts[1::2], batch.prompts)
    np.testing.assert_array_equal(found.prompt_mask[::2], batch.prompt_mask)
