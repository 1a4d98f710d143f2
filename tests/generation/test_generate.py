import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rlhf_jax.batches import PromptBatch
from rlhf_jax.generation import generate, scoring
from rlhf_jax.generation.rollout import rollout, row_keys
from rlhf_jax.generation.sampling import Sampling
from rlhf_jax.models.heads import ScoreModel
from rlhf_jax.models.quantise import quantise
from tests.models.families import GMASK, MASK, START

generation_module = sys.modules["rlhf_jax.generation.generate"]

NUM_TOKENS = 30
SAMPLING = Sampling(
    max_new_tokens=10,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    min_new_tokens=0,
    stop_ids=(1, 2),
    pad_id=0,
    num_tokens=NUM_TOKENS,
)


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, NUM_TOKENS, (5, 8)).astype(np.int32)
    lengths = np.array([8, 5, 1, 7, 3])
    mask = np.arange(8)[None] >= 8 - lengths[:, None]
    return jnp.where(mask, tokens, 0), jnp.asarray(mask)


@pytest.fixture(scope="module")
def chatglm_6b_prompts():
    """[gMASK] behind the context, [MASK] inside it, and a context of one token."""
    rows = [
        [5, 6, 7, 8, 9, 10, GMASK, START],
        [5, MASK, 6, 7, START],
        [GMASK, START],
        [11, 12, GMASK, START, 13, 14],  # the answer has begun
    ]
    tokens, mask = np.zeros((4, 8), np.int32), np.zeros((4, 8), bool)
    for row, ids in enumerate(rows):
        tokens[row, 8 - len(ids) :] = ids
        mask[row, 8 - len(ids) :] = True
    return tokens, mask


@jax.jit
def forward(model, tokens):
    return model(tokens)


def sampling(**changes) -> Sampling:
    return dataclasses.replace(SAMPLING, **changes)


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["chatglm2", "chatglm_6b"])
def test_greedy_takes_the_likeliest_token_of_a_full_forward_pass(family, request):
    names = {"chatglm2": ("model", "prompts")}
    names = names.get(family, ("chatglm_6b", "chatglm_6b_prompts"))
    model, (tokens, mask) = map(request.getfixturevalue, names)
    out = generate(model, tokens, mask, jax.random.key(0), sampling(temperature=0.0))
    assert len({tuple(row) for row in out.tokens.tolist()}) > 1
    for row in range(len(tokens)):
        context = np.asarray(tokens)[row][np.asarray(mask)[row]]
        length, start = int(out.lengths[row]), len(context)
        whole = np.zeros((1, 18), np.int32)
        whole[0, :start] = context
        whole[0, start : start + length] = response = out.tokens[row, :length]
        logits = forward(model, whole)[0, start - 1 : start - 1 + length]
        assert (logits[:, :NUM_TOKENS].argmax(-1) == response).all()
        assert bool(out.ended[row]) == (int(response[-1]) in (1, 2))
        log = jax.nn.log_softmax(logits[:, :NUM_TOKENS])
        log = jnp.take_along_axis(log, response[:, None], axis=1)[:, 0]
        np.testing.assert_allclose(out.model_logprobs[row, :length], log, atol=1e-4)


def test_the_mask_ends_with_the_first_stop_token(model, prompts):
    out = generate(model, *prompts, jax.random.key(1), sampling(temperature=2.0))
    assert out.ended.any()
    assert not out.ended.all()
    for row in range(len(out.tokens)):
        length = int(out.lengths[row])
        response = np.asarray(out.tokens[row])
        stops = np.isin(response[:length], (1, 2))
        assert out.mask[row].tolist() == [i < length for i in range(10)]
        assert stops[:-1].sum() == 0
        assert stops[-1] == bool(out.ended[row])
        assert out.ended[row] or length == 10
        assert (response[length:] == 0).all()
        assert (np.asarray(out.logprobs)[row, length:] == 0).all()


def test_the_loop_ends_when_every_row_has_stopped(model, prompts):
    # Nothing but stop tokens can be drawn: one token each.
    always_stop = dataclasses.replace(SAMPLING, stop_ids=tuple(range(NUM_TOKENS)))
    out = generate(model, *prompts, jax.random.key(2), always_stop)
    assert out.lengths.tolist() == [1] * 5
    assert out.ended.all()


@pytest.mark.parametrize("stop_ids", [(1, 2), tuple(range(1, 12))])
def test_a_cache_that_grows_changes_nothing(model, prompts, stop_ids, monkeypatch):
    """In four sizes or in one; also where all rows end before it has grown."""
    settings = sampling(stop_ids=stop_ids)
    keys = jax.random.split(jax.random.key(3), 5)
    found = []
    for shortest, sizes in ((20, [10]), (2, [2, 5, 7, 10])):
        monkeypatch.setattr(generation_module, "SHORTEST_GROWTH", shortest)
        monkeypatch.setattr(generation_module, "MOST_GROWTHS_APART", len(sizes))
        assert generation_module.growth(10, stacked=False) == sizes
        run = jax.jit(
            lambda *arguments: generation_module.generate_program.__wrapped__(
                *arguments, settings
            )
        )
        found.append(run(model, *prompts, keys))
    one, four = found
    np.testing.assert_array_equal(one.tokens, four.tokens)
    np.testing.assert_array_equal(one.mask, four.mask)
    np.testing.assert_array_equal(one.ended, four.ended)
    np.testing.assert_allclose(one.logprobs, four.logprobs, atol=1e-5)
    assert (four.lengths.max() > 5) == (stop_ids == (1, 2))


def test_minimum_length_holds(model, prompts):
    out = generate(model, *prompts, jax.random.key(3), sampling(min_new_tokens=6))
    assert (out.lengths >= 6).all()


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("temperature", "change"), [(1.0, None), (0.7, None), (1.0, quantise)]
)
def test_sampler_and_trainer_compute_the_same_logprobs(
    model, prompts, temperature, change
):
    tokens, mask = prompts
    model = change(model) if change else model
    settings = sampling(temperature=temperature)
    out = generate(model, tokens, mask, jax.random.key(4), settings)
    for log, at in ((out.logprobs, temperature), (out.model_logprobs, 1.0)):
        trainer = scoring.response_logprobs(
            model,
            tokens,
            mask,
            out.tokens[:, None],
            out.mask[:, None],
            temperature=at,
            num_tokens=NUM_TOKENS,
            chunk_size=0,
        ).logprobs[:, 0]
        gap = jnp.where(out.mask, log - trainer, 0.0)
        assert jnp.abs(gap).max() < 1e-4


def test_a_prompt_with_its_key_gets_the_same_response_in_any_batch(model, prompts):
    tokens, mask = prompts
    keys = jax.random.split(jax.random.key(5), 5)
    together = generate(model, tokens, mask, keys, SAMPLING)
    order = jnp.array([3, 1])
    apart = generate(model, tokens[order], mask[order], keys[order], SAMPLING)
    assert (apart.tokens == together.tokens[order]).all()


def test_more_left_padding_changes_nothing(model, prompts):
    tokens, mask = prompts
    keys = jax.random.split(jax.random.key(6), 5)
    plain = generate(model, tokens, mask, keys, SAMPLING)
    wide = generate(
        model,
        jnp.pad(tokens, ((0, 0), (4, 0))),
        jnp.pad(mask, ((0, 0), (4, 0))),
        keys,
        SAMPLING,
    )
    assert (wide.tokens == plain.tokens).all()
    np.testing.assert_allclose(wide.logprobs, plain.logprobs, atol=1e-5)


def test_chatglm_6b_gives_the_same_response_in_any_batch(
    chatglm_6b, chatglm_6b_prompts
):
    tokens, mask = chatglm_6b_prompts
    keys = jax.random.split(jax.random.key(5), 4)
    together = generate(chatglm_6b, tokens, mask, keys, SAMPLING)
    order = np.array([2, 0])
    wider = ((0, 0), (3, 0))
    apart = generate(
        chatglm_6b,
        np.pad(tokens[order], wider),
        np.pad(mask[order], wider),
        keys[order],
        SAMPLING,
    )
    assert (apart.tokens == together.tokens[order]).all()


def test_another_key_gives_another_response(model, prompts):
    a = generate(model, *prompts, jax.random.key(7), SAMPLING)
    b = generate(model, *prompts, jax.random.key(8), SAMPLING)
    assert (a.tokens != b.tokens).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, m: (t.at[0, 3].set(32), m), "Token 32 in row 0"),
        (lambda t, m: (t.at[4, 7].set(-1), m), "outside the vocabulary of 32"),
        (lambda t, m: (t, m.at[2].set(False)), r"Rows \[2\] are empty"),
        (lambda t, m: (t, m.at[0, 2].set(False)), r"rows \[0\] have holes"),
        (lambda t, m: (t[:, :0], m[:, :0]), "are empty"),
    ],
)
def test_bad_prompts_are_refused_before_anything_is_compiled(
    model, prompts, change, message, monkeypatch
):
    monkeypatch.setattr(generation_module, "generate_program", None)
    tokens, mask = change(*prompts)
    for made in (np.asarray, jnp.asarray):
        with pytest.raises(ValueError, match=message):
            generate(model, made(tokens), made(mask), jax.random.key(0), SAMPLING)


def test_generation_can_stand_inside_a_jit(model, prompts):
    def lengths(model, tokens, mask, key):
        return generate(model, tokens, mask, key, SAMPLING).lengths

    key = jax.random.key(5)
    inside = jax.jit(lengths)(model, *prompts, key)
    assert (inside == lengths(model, *prompts, key)).all()


def test_what_exceeds_the_context_is_refused(model, prompts):
    with pytest.raises(ValueError, match="need a context of 108; the model has 64"):
        generate(model, *prompts, jax.random.key(0), sampling(max_new_tokens=100))


def test_rollout_hangs_on_the_prompts_index_not_on_its_place(model, prompts):
    tokens, mask = prompts
    key = jax.random.key(9)
    batch = PromptBatch(tokens, mask, jnp.array([10, 11, 12, 13, 14]))
    whole = rollout(model, batch, key, SAMPLING)
    part = PromptBatch(tokens[3:], mask[3:], jnp.array([13, 14]))
    assert (rollout(model, part, key, SAMPLING).responses == whole.responses[3:]).all()
    out = generate(model, tokens, mask, row_keys(key, batch.index), SAMPLING)
    for found, expected in (
        (whole.prompts, tokens),
        (whole.prompt_mask, mask),
        (whole.responses, out.tokens),
        (whole.response_mask, out.mask),
        (whole.logprobs, out.logprobs),
        (whole.ended, out.ended),
    ):
        np.testing.assert_array_equal(found, expected)


def score_arguments():
    rng = np.random.default_rng(3)
    tokens = jnp.asarray(rng.integers(3, NUM_TOKENS, (2, 6)), jnp.int32)
    mask = jnp.array([[False] * 2 + [True] * 4, [True] * 6])
    responses = jnp.asarray(rng.integers(3, NUM_TOKENS, (2, 2, 5)), jnp.int32)
    lengths = jnp.array([[5, 2], [1, 4]])
    return tokens, mask, responses, jnp.arange(5)[None, None] < lengths[..., None]


def test_scores_of_a_shared_prompt_equal_separate_passes(model):
    score_model = ScoreModel(model, rngs=nnx.Rngs(1))
    tokens, mask, responses, response_mask = score_arguments()
    shared = scoring.response_scores(
        score_model, tokens, mask, responses, response_mask
    )
    for row in range(2):
        for k in range(2):
            prompt = np.asarray(tokens[row])[np.asarray(mask[row])]
            length = int(response_mask[row, k].sum())
            text = np.concatenate([prompt, np.asarray(responses[row, k])])
            # What comes later changes nothing, and all rows have one shape.
            later = np.pad(text, (0, 11 - len(text)))
            alone = forward(score_model, later[None])[0, len(prompt) + length - 1]
            np.testing.assert_allclose(shared[row, k], alone, atol=1e-5)


def test_an_empty_response_has_the_score_of_its_prompts_end(model):
    score_model = ScoreModel(model, rngs=nnx.Rngs(1))
    tokens, mask, responses, response_mask = score_arguments()
    nothing = response_mask.at[:, 0].set(False)
    empty = scoring.response_scores(score_model, tokens, mask, responses, nothing)
    whole = scoring.response_scores(score_model, tokens, mask, responses, response_mask)
    np.testing.assert_allclose(empty[:, 1], whole[:, 1], atol=1e-5)
    ends = forward(score_model, tokens[1:])[0, -1]  # a prompt without padding
    np.testing.assert_allclose(empty[1, 0], ends, atol=1e-5)
    assert abs(ends - whole[1, 0]) > 1e-3


def test_a_value_is_of_the_state_before_its_token(model):
    score_model = ScoreModel(model, rngs=nnx.Rngs(1))
    tokens, mask, responses, response_mask = score_arguments()
    values = scoring.response_values(
        score_model, tokens, mask, responses, response_mask
    )
    prompt = np.asarray(tokens[0])[np.asarray(mask[0])]
    text = jnp.asarray(np.concatenate([prompt, np.asarray(responses[0, 0])]))[None]
    alone = forward(score_model, text)[0]
    start = len(prompt)
    np.testing.assert_allclose(values[0, 0], alone[start - 1 : start + 4], atol=1e-5)
