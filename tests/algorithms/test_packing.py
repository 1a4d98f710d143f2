"""Losses and gradients of packed rows against those of rows of their own."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import nnx

from rlhf_jax.algorithms import dpo, ppo, reward, sft
from rlhf_jax.data import packing
from rlhf_jax.data.batching import packed_pairs, preference_batch, sft_batch
from rlhf_jax.data.sft_term import SFTBatches
from rlhf_jax.evaluation.held_out import score_pairs
from rlhf_jax.generation.rollout import rollout
from rlhf_jax.generation.scoring import pair_scores
from rlhf_jax.models.heads import ScoreModel
from rlhf_jax.ppo.experience import make_experience
from rlhf_jax.ppo.forward import run_models
from rlhf_jax.training.accumulate import value_and_grad
from tests.algorithms import ppo_parts
from tests.models.families import FAMILIES, random_model, random_tokens

LENGTHS = [11, 4, 8, 6, 12, 5]


def dialogues(config):
    rows = random_tokens(config, (len(LENGTHS), max(LENGTHS)), prompt=2)
    rng = np.random.default_rng(0)
    return [
        (row[:n].tolist(), [True, *rng.integers(0, 2, n - 1).astype(bool).tolist()])
        for row, n in zip(rows, LENGTHS, strict=True)
    ]


def equal_trees(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("family", "microbatches"), [("v1", 1), ("glm4", 2)])
def test_packed_dialogues_have_the_loss_and_gradient_of_rows_of_their_own(
    family, microbatches
):
    model = random_model(FAMILIES[family])
    examples = dialogues(model.config)
    packed = packing.pack_dialogues(
        examples,
        pad_id=0,
        room=packing.Room(tokens=12, targets=12),
        unit=microbatches,
        batch_size=6,
    )
    assert len(packed.tokens) == 4
    plain = sft_batch(examples, pad_id=0, multiple=4)
    hyper = sft.Hyper(
        num_tokens=model.config.vocab_size, chunk_size=3, microbatches=microbatches
    )

    @jax.jit
    def loss_and_gradient(model, batch):
        share = functools.partial(
            sft.loss_fn, num_target=batch.loss_mask.sum(), hyper=hyper
        )
        return value_and_grad(share, model, batch, microbatches=microbatches)[::2]

    equal_trees(loss_and_gradient(model, packed), loss_and_gradient(model, plain))


def test_ppo_on_packed_rows_equals_ppo_on_rows_of_their_own():
    """The outputs of all models, and a whole iteration of updates with plain gradient
    steps, whose loss compares responses; some have no part in the update."""
    hyper = ppo_parts.changed(
        objective="gspo",
        loss_aggregation="response",
        microbatches=2,
        entropy_coef=0.1,
        beta_sft=0.5,
    )
    state, frozen, tx = ppo_parts.make_state(tx=ppo_parts.SGD)
    prompts = ppo_parts.make_prompts(rows=16)
    sampling = dataclasses.replace(ppo_parts.SAMPLING, max_new_tokens=16)
    rolled = rollout(state.policy.model, prompts, jax.random.key(0), sampling)
    assert len(set(np.asarray(rolled.response_mask).sum(-1))) > 2
    host = jax.tree.map(np.asarray, rolled)

    def packed(rows, unit):
        return packing.pack_minibatches(host, rows, pad_id=0, unit=unit)

    whole = packed(np.arange(16)[None], 4)
    whole = jax.tree.map(lambda x: x[0], whole)
    assert len(whole.tokens) <= 12
    outputs_of = jax.jit(functools.partial(run_models, hyper=hyper))
    outputs = outputs_of(state, frozen, rolled)
    equal_trees(
        outputs_of(state, frozen, rolled, whole)._replace(entropy=None),
        outputs._replace(entropy=None),
    )

    experience, *_ = jax.jit(functools.partial(make_experience, hyper=hyper))(
        state, rolled, outputs, outputs.scores, np.zeros(16), np.arange(16) % 5 != 1
    )
    step = functools.partial(
        ppo.train_step, hyper=hyper, policy_optimizer=tx, value_optimizer=tx
    )
    key, rates = jax.random.key(1), np.full(hyper.num_updates, 0.1, np.float32)
    rows = packed(np.asarray(ppo.minibatches(key, 16, hyper=hyper)), 2)
    assert rows.tokens.shape[:2] < (2, 8)
    rng = np.random.default_rng(1)
    dialogues = [
        (rng.integers(4, 30, n).tolist(), [i > 1 for i in range(n)])
        for n in (7, 4, 3, 5, 9, 6)
    ]
    made = {"batch_size": 6, "multiple": 4, "pad_id": 0, "seed": 0}
    sft_terms = [
        SFTBatches(dialogues, **made, unit=unit).stack(0, hyper.num_updates)
        for unit in (2, None)
    ]
    assert sft_terms[0].tokens.shape[1] < sft_terms[1].tokens.shape[1]
    both = [
        jax.jit(step)(state, experience, x, key, (rates, rates), y)
        for x, y in zip(sft_terms, (rows, None), strict=True)
    ]
    shares = [metrics.pop("data/real_tokens").value() for _, metrics in both]
    assert shares[0] > 1.2 * shares[1]
    equal_trees(*both)


PAIRS = [(3, 4, 2), (5, 2, 3), (2, 3, 1), (4, 1, 2), (2, 2, 4)]  # lengths


@pytest.mark.parametrize("share", [True, False])
def test_packed_pairs_have_the_reward_loss_and_gradient_of_rows_of_their_own(share):
    """With one prompt for both responses, and with a copy for each."""
    rng = np.random.default_rng(0)
    pairs = [[rng.integers(0, 50, n).tolist() for n in sizes] for sizes in PAIRS]
    backbone = random_model(FAMILIES["glm4"])
    model = ScoreModel(backbone, rngs=nnx.Rngs(0))
    packed = packing.pack_scored_pairs(
        pairs,
        pad_id=0,
        room=packing.Room(tokens=20, targets=14),
        unit=1,
        batch_size=5,
        share=share,
    )
    assert len(packed.tokens) < 5
    plain = packed_pairs(pairs, pad_id=0, multiple=4, batch_size=6)
    hyper = reward.Hyper(
        margin=0.1, label_smoothing=0.1, score_regularisation=0.05, microbatches=1
    )
    loss_fn = functools.partial(reward.batch_loss, hyper=hyper)

    @jax.jit
    def loss_and_gradient(model, batch):
        (loss, _), gradient = jax.value_and_grad(loss_fn, has_aux=True)(model, batch)
        return loss, gradient

    equal_trees(loss_and_gradient(model, packed), loss_and_gradient(model, plain))

    # Scores of held-out pairs, in two batches, stay in the order of the pairs.
    if share:
        found = score_pairs(model, pairs, pad_id=0, multiple=4, batch_size=1)
        alone = jax.jit(pair_scores)(model, plain)[: len(pairs)]
        np.testing.assert_allclose(found, alone, rtol=1e-5, atol=1e-5)


def test_packed_pairs_have_the_orpo_loss_and_gradient_of_rows_of_their_own():
    """A loss that an empty slot without care would make NaN."""
    rng = np.random.default_rng(0)
    pairs = [[rng.integers(0, 50, n).tolist() for n in sizes] for sizes in PAIRS]
    model = random_model(FAMILIES["glm4"])
    room = packing.Room(tokens=20, targets=14)
    packed = packing.pack_pairs(
        pairs, pad_id=0, room=room, unit=2, batch_size=6, share=True
    )
    assert len(packed.tokens) < 6
    plain = preference_batch(pairs, pad_id=0, multiple=4, batch_size=6)
    hyper = dpo.Hyper(
        num_tokens=model.config.vocab_size,
        chunk_size=3,
        loss="orpo",
        beta=0.1,
        label_smoothing=0.0,
        gamma=0.0,
        alpha=0.0,
        desirable_weight=1.0,
        undesirable_weight=1.0,
        beta_sft=0.0,
        microbatches=1,
    )
    loss_fn = functools.partial(dpo.batch_loss, hyper=hyper)

    @jax.jit
    def loss_and_gradient(model, batch):
        (_, metrics), gradient = jax.value_and_grad(loss_fn, has_aux=True)(model, batch)
        del metrics["data/real_tokens"]
        return metrics, gradient

    equal_trees(loss_and_gradient(model, packed), loss_and_gradient(model, plain))
