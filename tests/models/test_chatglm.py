"""Invariants of every family, for any weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.families import (
    FAMILIES,
    START,
    random_model,
    random_tokens,
    with_fields,
)

TIME = 12


@jax.jit
def hidden_of(model, tokens, mask):
    return model.hidden(tokens, mask)


@jax.jit
def hidden_of_segments(model, tokens, mask, segments):
    return model.hidden(tokens, mask, segments=segments)


@jax.jit
@jax.value_and_grad
def loss_and_gradient(model, tokens, mask):
    logprobs = jax.nn.log_softmax(model(tokens, mask))
    return jnp.where(mask[..., None], logprobs, 0)[..., 0].sum()


def batch(config, rows=3):
    """Tokens [rows, TIME]; row b has b tokens of padding on the right."""
    tokens = random_tokens(config, (rows, TIME), prompt=4)
    mask = np.arange(TIME)[None] < TIME - np.arange(rows)[:, None]
    return tokens, mask


def shift_right(tokens, mask):
    """The same rows with their padding on the left, and other ids in the padding."""
    tokens, mask = tokens.copy(), mask.copy()
    for b in range(len(tokens)):
        padding = int((~mask[b]).sum())
        tokens[b], mask[b] = np.roll(tokens[b], padding), np.roll(mask[b], padding)
        tokens[b, :padding] = 7
    return tokens, mask


def test_padding_on_either_side_changes_no_real_token(model):
    tokens, mask = batch(model.config)
    right = hidden_of(model, tokens, mask)
    left = hidden_of(model, *shift_right(tokens, mask))
    # Padding after a row's end is read as text here, and cannot affect earlier tokens.
    alone = hidden_of(model, tokens, None)
    for b in range(len(tokens)):
        n = mask[b].sum()
        np.testing.assert_allclose(right[b, :n], alone[b, :n], atol=1e-5)
        np.testing.assert_allclose(left[b, TIME - n :], alone[b, :n], atol=1e-5)


def test_a_permuted_batch_gives_permuted_outputs(model):
    tokens, mask = batch(model.config)
    order = np.array([2, 0, 1])
    expected = np.asarray(hidden_of(model, tokens, mask))[order]
    found = hidden_of(model, tokens[order], mask[order])
    np.testing.assert_array_equal(np.asarray(found), expected)


def test_later_tokens_leak_nothing_bit_for_bit(model):
    tokens, mask = batch(model.config)
    changed = tokens.copy()
    changed[:, 9] = (changed[:, 9] + 1) % START
    before = np.asarray(hidden_of(model, tokens, mask))
    after = np.asarray(hidden_of(model, changed, mask))
    np.testing.assert_array_equal(after[:, :9], before[:, :9])
    assert (after[:, 9] != before[:, 9]).any(axis=-1).all()


def test_the_context_of_chatglm_6b_is_seen_by_all_of_it():
    """A later token of the context changes the first; one of the response does not."""
    model = random_model(FAMILIES["v1"])
    tokens, mask = batch(model.config, rows=1)  # [gMASK] at 3, <sop> at 4
    before = np.asarray(hidden_of(model, tokens, mask))
    changed = tokens.copy()
    changed[0, 2] = (changed[0, 2] + 1) % START
    assert (np.asarray(hidden_of(model, changed, mask))[0, 0] != before[0, 0]).any()


def test_responses_behind_one_prompt_equal_separate_passes(model):
    """Prompts padded on the left, responses on the right, as `batches.pack` lays them;
    the third response is empty."""
    prompt, length = 6, 4
    lengths = [4, 2, 0, 3]
    rng = np.random.default_rng(1)
    tokens = random_tokens(model.config, (1, prompt), seed=1, prompt=prompt - 1)
    responses = rng.integers(0, START, (len(lengths), length)).astype(np.int32)
    packed = np.concatenate([tokens, responses.reshape(1, -1)], axis=1)
    prompt_mask = np.arange(prompt)[None] >= 1
    response_mask = np.arange(length)[None] < np.array(lengths)[:, None]
    mask = np.concatenate([prompt_mask, response_mask.reshape(1, -1)], axis=1)
    segments = [0] * prompt + [
        k + 1 for k in range(len(lengths)) for _ in range(length)
    ]
    segments = np.array([segments], np.int32)
    together = hidden_of_segments(model, packed, mask, segments)[0]

    rows = len(lengths)
    apart = hidden_of(
        model,
        np.concatenate([np.repeat(tokens, rows, 0), responses], axis=1),
        np.concatenate([np.repeat(prompt_mask, rows, 0), response_mask], axis=1),
    )
    np.testing.assert_allclose(together[1:prompt], apart[0, 1:prompt], atol=1e-5)
    for k, n in enumerate(lengths):
        start = prompt + k * length
        np.testing.assert_allclose(
            together[start : start + n], apart[k, prompt : prompt + n], atol=1e-5
        )


def test_examples_of_one_row_equal_rows_of_their_own(model):
    """The texts of `batch` one after another; the last is a prompt and a response."""
    tokens, mask = batch(model.config)
    lengths = mask.sum(axis=1)
    apart = hidden_of(model, tokens, mask)
    row = np.concatenate([tokens[b, :n] for b, n in enumerate(lengths)])
    examples = np.repeat(np.arange(len(lengths)), lengths)
    segments = np.where(np.arange(len(row)) < len(row) - 3, 0, 1)
    packed, padding = np.pad(row, (0, 2))[None], ((0, 0), (0, 2))
    both = {"segments": segments[None], "examples": examples[None]}
    both = {
        k: np.pad(x, padding, mode="edge").astype(np.int32) for k, x in both.items()
    }
    together = jax.jit(type(model).hidden)(
        model, packed, np.arange(len(row) + 2)[None] < len(row), **both
    )
    expected = np.concatenate([apart[b, :n] for b, n in enumerate(lengths)])
    np.testing.assert_allclose(together[0, : len(row)], expected, atol=1e-5)


def test_decoding_in_pieces_equals_the_full_pass(model):
    """A prompt, then one token, then two; one row has stopped by then."""
    tokens, mask = shift_right(*batch(model.config))
    mask[1, 11:] = False
    whole = np.asarray(hidden_of(model, tokens, mask))
    cache = model.init_cache(len(tokens), TIME + 2)
    decode = jax.jit(lambda m, *a: m.decode(*a))
    parts = []
    for start, end in ((0, 9), (9, 10), (10, TIME)):
        hidden, cache, _ = decode(
            model, tokens[:, start:end], mask[:, start:end], cache
        )
        parts.append(hidden)
    decoded = np.concatenate(parts, axis=1)
    assert np.abs(decoded - whole)[mask].max() < 1e-5
    assert cache.index == TIME


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_scanned_and_recomputed_layers_give_the_same_gradients(remat):
    model = random_model(FAMILIES["glm4"])
    tokens, mask = batch(model.config)
    _, expected = loss_and_gradient(model, tokens, mask)
    model = with_fields(model, scan_layers=True, remat=remat)
    _, found = loss_and_gradient(model, tokens, mask)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()) + 1e-9)


def test_padding_gives_no_nan_forward_or_backward(model):
    """Outputs are finite even for a row without tokens, as in an evaluation's last
    batch."""
    tokens, mask = shift_right(*batch(model.config))
    mask[0] = False
    loss, gradient = loss_and_gradient(model, tokens, mask)
    assert jnp.isfinite(loss)
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(gradient))


def test_every_parameter_of_every_family_takes_part(model):
    _, gradient = loss_and_gradient(model, *batch(model.config))
    for path, leaf in jax.tree_util.tree_flatten_with_path(gradient)[0]:
        name = jax.tree_util.keystr(path)
        if "correction" in name:  # it chooses, and nothing trains it
            assert not np.any(leaf), name
        else:
            assert np.abs(leaf).max() > 1e-4, f"{name} has no gradient."


def test_logits_are_float32_in_low_precision():
    config = dataclasses.replace(FAMILIES["v2"], dtype="bfloat16")
    model = random_model(config)
    tokens, mask = batch(config)
    assert hidden_of(model, tokens, mask).dtype == jnp.bfloat16
    assert jax.eval_shape(lambda m: m(jnp.asarray(tokens)), model).dtype == jnp.float32
    assert model.embedding.dtype == jnp.float32


def test_a_tree_of_readable_names(model):
    paths = jax.tree_util.tree_flatten_with_path(model)[0]
    names = {jax.tree_util.keystr(p).removesuffix(".value") for p, _ in paths}
    assert ".blocks.attention.query.kernel" in names
    layer = ".blocks.mlp.experts" if model.config.num_experts else ".blocks.mlp"
    assert f"{layer}.up.kernel" in names
    assert (".head.kernel" in names) != model.config.tied


def test_unknown_choices_are_refused():
    with pytest.raises(ValueError, match="residual='post'"):
        dataclasses.replace(FAMILIES["v2"], residual="post")
    with pytest.raises(ValueError, match="num_kv_heads=3"):
        dataclasses.replace(FAMILIES["v2"], num_kv_heads=3)
