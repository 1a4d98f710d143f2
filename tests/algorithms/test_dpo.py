"""DPO's losses of models: only responses count, and the reference as it should."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rlhf_jax.algorithms import dpo
from rlhf_jax.data import packing
from rlhf_jax.data.batching import preference_batch
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.presets import preset
from rlhf_jax.stages.dpo import reference_logprobs
from rlhf_jax.training.state import TrainState
from tests.algorithms.ppo_parts import SGD
from tests.trees import assert_trees_close

HYPER = dpo.Hyper(
    num_tokens=512,
    chunk_size=0,
    loss="dpo",
    beta=0.2,
    label_smoothing=0.0,
    gamma=0.0,
    alpha=0.0,
    desirable_weight=1.0,
    undesirable_weight=1.0,
    beta_sft=0.0,
    microbatches=1,
)
PAIRS = [  # prompt, chosen, rejected, of all lengths
    ([5, 6, 7], [11, 12, 13, 14], [21, 22]),
    ([8], [31], [41, 42, 43, 44, 45, 46]),
    ([9, 9, 4, 3, 2], [51, 52, 53], [61, 62, 63]),
    ([1, 2], [71, 72], [81]),
]


def log_sigmoid(x):
    return -np.log1p(np.exp(-x))


def slow_orpo(means):
    odds = np.exp(means) / (1 - np.exp(means))
    return -means[:, 0] - 0.2 * log_sigmoid(np.log(odds[:, 0] / odds[:, 1]))


@functools.cache
def micro(seed: int) -> ChatGLM:
    """A small model with weights large enough that every token matters."""
    config = preset("micro", vocab_size=512)
    return jax.jit(lambda: ChatGLM(config, rngs=nnx.Rngs(seed)))()


def batch_of(pairs, multiple=8):
    return preference_batch(pairs, pad_id=0, multiple=multiple)


@functools.partial(jax.jit, static_argnames="hyper")
def share(policy, batch, ref_logprobs, reference=None, hyper=HYPER):
    """The loss of a batch and the numbers to log."""
    return dpo.loss_fn(
        policy,
        (batch, ref_logprobs, None),
        reference=reference,
        num_pairs=batch.valid.sum(),
        num_sft_tokens=None,
        hyper=hyper,
    )


logprobs_of = jax.jit(functools.partial(dpo.pair_logprobs, hyper=HYPER))


LENGTHS = np.array([[3, 7], [9, 2]])  # chosen, rejected
LOGPROBS = np.array([[-9.0, -20.0], [-30.0, -4.0]], np.float32)
REFERENCE = np.array([[-8.0, -22.0], [-33.0, -5.0]], np.float32)
LOG_RATIO = (LOGPROBS - REFERENCE) @ np.array([1.0, -1.0])  # 1 and 2


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("dpo", lambda z: -0.9 * log_sigmoid(0.2 * z) - 0.1 * log_sigmoid(-0.2 * z)),
        (
            "robust",
            lambda z: (-0.9 * log_sigmoid(0.2 * z) + 0.1 * log_sigmoid(-0.2 * z)) / 0.8,
        ),
        ("ipo", lambda z: (z - 1 / (2 * 0.2)) ** 2),
        (
            "length_regularised",
            lambda z: -log_sigmoid(0.2 * z + 0.05 * (LENGTHS @ np.array([1, -1]))),
        ),
        (
            "simpo",
            lambda z: (
                -log_sigmoid(0.2 * (LOGPROBS / LENGTHS) @ np.array([1, -1]) - 0.7)
            ),
        ),
        ("orpo", lambda z: slow_orpo(LOGPROBS / LENGTHS)),
    ],
    ids=lambda loss: loss if isinstance(loss, str) else "",
)
def test_a_loss_takes_the_numbers_and_the_lengths_of_either_response(loss, expected):
    hyper = dataclasses.replace(
        HYPER, loss=loss, label_smoothing=0.1, gamma=0.7, alpha=0.05
    )
    given = (jnp.asarray(x) for x in (LOGPROBS, REFERENCE, LENGTHS))
    found = dpo.preference_loss(*given, hyper)
    np.testing.assert_allclose(found.loss, expected(LOG_RATIO), rtol=1e-5)


@pytest.mark.parametrize("loss", ["dpo", "robust", "ipo", "length_regularised", "kto"])
def test_a_loss_that_needs_a_reference_says_so(loss):
    hyper = dataclasses.replace(HYPER, loss=loss)
    with pytest.raises(ValueError, match=f"loss='{loss}' needs the reference's"):
        dpo.preference_loss(LOGPROBS, None, LENGTHS, hyper)


def test_only_response_tokens_count():
    """Against a float64 sum over the logits of each whole sequence, prompt and one
    response, that the model computes alone."""
    model = micro(0)
    expected = np.zeros((len(PAIRS), 2))
    forward = jax.jit(lambda tokens, mask: model(tokens, mask))
    for i, (prompt, *responses) in enumerate(PAIRS):
        for side, response in enumerate(responses):
            length = len(prompt) + len(response)
            tokens = np.zeros((1, 16), np.int32)
            tokens[0, :length] = prompt + response
            logits = np.asarray(forward(tokens, np.arange(16)[None] < length))[0]
            logits = logits.astype(np.float64)
            logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            places = range(len(prompt) - 1, length - 1)
            expected[i, side] = sum(
                logprobs[t, token] for t, token in zip(places, response, strict=True)
            )
    np.testing.assert_allclose(logprobs_of(model, batch_of(PAIRS)), expected, rtol=1e-4)


def test_padding_never_counts():
    model, batch = micro(0), batch_of(PAIRS)
    expected = logprobs_of(model, batch)
    wide = batch_of(PAIRS, multiple=32)
    np.testing.assert_allclose(logprobs_of(model, wide), expected, atol=1e-5)
    garbage = dataclasses.replace(
        batch,
        prompts=np.where(batch.prompt_mask, batch.prompts, 99),
        responses=np.where(batch.response_mask, batch.responses, 99),
    )
    np.testing.assert_allclose(logprobs_of(model, garbage), expected, atol=1e-5)


def test_rows_that_fill_a_batch_never_count():
    model, reference = micro(0), micro(1)
    whole, metrics = share(model, batch_of(PAIRS), None, reference)
    filled = preference_batch(PAIRS, pad_id=0, multiple=8, batch_size=8)
    loss, filled_metrics = share(model, filled, None, reference)
    np.testing.assert_allclose(loss, whole, rtol=1e-5)
    metrics.pop("data/real_tokens")  # it is the share of all tokens
    for name, mean in metrics.items():
        assert filled_metrics[name].count == mean.count
        np.testing.assert_allclose(filled_metrics[name].total, mean.total, rtol=1e-5)


def test_gradient_at_the_reference_is_the_closed_form():
    """beta / 2 times the gradient of log pi(rejected) - log pi(chosen)."""
    model, batch = micro(0), batch_of(PAIRS)
    reference = logprobs_of(model, batch)
    got = jax.grad(lambda m: share(m, batch, reference)[0])(model)

    def closed_form(model):
        chosen, rejected = logprobs_of(model, batch).T
        return HYPER.beta / 2 * (rejected - chosen).mean()

    expected = jax.grad(closed_form)(model)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-6)


def test_a_cached_reference_and_one_on_the_fly_give_equal_losses():
    model, reference, batch = micro(0), micro(1), batch_of(PAIRS)
    cached = reference_logprobs(
        reference, PAIRS, functools.partial(batch_of, multiple=32), 2, logprobs_of
    )
    for loss in ("dpo", "ipo"):
        hyper = dataclasses.replace(HYPER, loss=loss)
        a, _ = share(model, batch, jnp.asarray(cached), hyper=hyper)
        b, _ = share(model, batch, None, reference, hyper=hyper)
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
        assert abs(a - share(model, batch, 0 * cached, hyper=hyper)[0]) > 0.01


@functools.partial(jax.jit, static_argnames="hyper")
def kto_step(policy, batch, reference, hyper, other=None):
    return dpo.train_step(
        TrainState.create(policy, SGD),
        batch,
        None,
        None,
        reference,
        0.1,
        other,
        optimizer=SGD,
        hyper=hyper,
    )


def test_kto_takes_its_reference_point_from_the_responses_to_other_prompts():
    """The next pair's responses after each prompt, by hand; in parts and in packed rows
    the step is the same."""
    model, reference = micro(0), micro(1)
    hyper = dataclasses.replace(
        HYPER, loss="kto", desirable_weight=1.2, undesirable_weight=0.7
    )
    prompts, *responses = zip(*PAIRS, strict=True)
    swapped = [x[-1:] + x[:-1] for x in responses]
    mismatched = batch_of(list(zip(prompts, *swapped, strict=True)))
    ratio = logprobs_of(model, mismatched) - logprobs_of(reference, mismatched)
    kl = float(ratio.mean())
    assert abs(kl) > 0.01
    if kl < 0:  # the other way round it is positive
        model, reference, kl = reference, model, -kl
    new, metrics = kto_step(model, batch_of(PAIRS), reference, hyper)
    assert float(metrics["objective/kl"]) == pytest.approx(kl, rel=1e-4)

    gap = np.float64(logprobs_of(model, batch_of(PAIRS)))
    gap -= np.float64(logprobs_of(reference, batch_of(PAIRS)))
    desirable = 1.2 / (1 + np.exp(0.2 * (gap[:, 0] - kl)))
    undesirable = 0.7 / (1 + np.exp(0.2 * (kl - gap[:, 1])))
    expected = (desirable + undesirable).mean() / 2
    assert metrics["loss/dpo"].value() == pytest.approx(expected, rel=1e-4)

    parts, _ = kto_step(
        model, batch_of(PAIRS), reference, dataclasses.replace(hyper, microbatches=2)
    )
    assert_trees_close(parts.model, new.model, atol=1e-5)

    rows, other = (
        packing.pack_pairs(
            pairs,
            pad_id=0,
            room=packing.Room(tokens=24, targets=20),
            unit=1,
            batch_size=len(PAIRS),
            share=True,
        )
        for pairs in (PAIRS, packing.mismatched(PAIRS))
    )
    assert len(rows.tokens) < len(PAIRS)
    packed, of_packed = kto_step(model, rows, reference, hyper, other)
    assert_trees_close(packed.model, new.model, atol=1e-5)
    assert float(of_packed["objective/kl"]) == pytest.approx(kl, rel=1e-4)


def test_kto_ignores_rows_that_fill_a_batch():
    """The first pair then follows a row of no pair, and has no part in the reference
    point."""
    hyper = dataclasses.replace(HYPER, loss="kto")
    model, reference = micro(0), micro(1)
    filled = preference_batch(PAIRS, pad_id=0, multiple=8, batch_size=8)
    garbage = dataclasses.replace(
        filled, responses=np.where(filled.valid[:, None, None], filled.responses, 99)
    )
    of = jax.jit(functools.partial(dpo.mismatched_kl, hyper=hyper))
    for policy, other in ((model, reference), (reference, model)):
        expected, found = (
            of(policy, other, dpo.mismatched(batch)) for batch in (filled, garbage)
        )
        np.testing.assert_array_equal(found, expected)


def test_kto_of_a_saved_batch_is_refused():
    hyper = dataclasses.replace(HYPER, loss="kto")
    with pytest.raises(ValueError, match="loss='kto' needs the KL of the whole batch"):
        dpo.preference_loss(*map(jnp.asarray, (LOGPROBS, REFERENCE, LENGTHS)), hyper)
