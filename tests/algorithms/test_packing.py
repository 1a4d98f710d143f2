"""Losses and gradients of packed rows against those of rows of their own."""

import functools

import jax
import numpy as np
import pytest

from rlhf_jax.algorithms import sft
from rlhf_jax.data import packing
from rlhf_jax.data.batching import sft_batch
from rlhf_jax.training.accumulate import value_and_grad
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
