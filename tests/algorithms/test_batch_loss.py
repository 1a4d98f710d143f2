"""The loss of a whole batch is the mean that the step follows, from the logits on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms import reward, sft
from rlhf_jax.batches import PackedPairs
from rlhf_jax.generation.scoring import pair_scores
from tests.algorithms.test_golden import (
    NUM_TOKENS,
    PROMPT,
    RESPONSE,
    ROWS,
    dialogues,
    ids,
    language_model,
    score_model,
)


def test_of_dialogues():
    policy, batch = language_model(), jax.tree.map(jnp.asarray, dialogues())
    hyper = sft.Hyper(NUM_TOKENS, chunk_size=0, microbatches=2)
    loss, metrics = jax.jit(functools.partial(sft.batch_loss, hyper=hyper))(
        policy, batch
    )
    logits = jax.jit(lambda model: model(batch.tokens, batch.mask))(policy)
    logprobs = jax.nn.log_softmax(logits[:, :-1, :NUM_TOKENS])
    chosen = np.take_along_axis(np.asarray(logprobs), batch.tokens[:, 1:, None], -1)
    expected = -chosen[..., 0][batch.loss_mask[:, 1:]].mean()
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    assert metrics["loss/sft"].value() == pytest.approx(expected, rel=1e-4)


def test_of_pairs():
    """A pair that only fills the batch has no part in it; equal scores are no
    success."""
    length = PROMPT + 2 * RESPONSE
    ends = np.tile([PROMPT + RESPONSE - 1, length - 1], (ROWS, 1))
    ends[2] = length - 1  # one place for both, so that their scores are equal
    batch = PackedPairs(
        tokens=ids(ROWS, length),
        mask=np.ones((ROWS, length), bool),
        segments=np.tile(np.repeat([0, 1, 2], [PROMPT, RESPONSE, RESPONSE]), (ROWS, 1)),
        ends=ends,
        valid=np.arange(ROWS) < 3,
    )
    hyper = reward.Hyper(
        margin=0.1, label_smoothing=0.0, score_regularisation=0.01, microbatches=2
    )
    model = score_model()
    loss, metrics = jax.jit(functools.partial(reward.batch_loss, hyper=hyper))(
        model, batch
    )
    chosen, rejected = np.asarray(jax.jit(pair_scores)(model, batch))[:3].T
    for name, expected in {
        "accuracies": (chosen > rejected).mean(),
        "margins": (chosen - rejected).mean(),
        "chosen": chosen.mean(),
        "rejected": rejected.mean(),
    }.items():
        assert metrics[f"rewards/{name}"].value() == pytest.approx(expected, rel=1e-4)
    assert 0 < (chosen > rejected).mean() < 1 and chosen[2] == rejected[2]
    ranking = np.log1p(np.exp(-(chosen - rejected - 0.1)))
    assert metrics["loss/ranking"].value() == pytest.approx(ranking.mean(), rel=1e-4)
    whole = ranking + 0.01 * (chosen**2 + rejected**2)
    assert float(loss) == pytest.approx(whole.mean(), rel=1e-4)
