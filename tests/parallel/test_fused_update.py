"""The fused update gives the parameters, moments and metrics of the ordinary one."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rlhf_jax.batches import SFTBatch
from rlhf_jax.generation.scoring import dialogue_logprobs
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.heads import ScoreModel
from rlhf_jax.models.presets import preset
from rlhf_jax.training.metrics import Mean
from rlhf_jax.training.optimizers import adafactor, adamw, sgd
from rlhf_jax.training.state import TrainState, optimizer_step
from tests.trees import assert_trees_close

NUM_TOKENS = 60
SGD = sgd(0.1, clip_norm=0.1)
ADAMW = adamw(1e-2, b1=0.9, b2=0.95, eps=1e-6, weight_decay=0.1, clip_norm=0.1)
ADAFACTOR = adafactor(0.1, weight_decay=0.1, clip_norm=0.1)


def model(**changes):
    # Without the keys' bias, whose gradient is 0 but for rounding: Adam and Adafactor
    # would blow that up to steps of full size.
    config = preset("micro", vocab_size=64, qkv_bias=False, **changes)
    return ChatGLM(config, rngs=nnx.Rngs(0))


EXPERTS = {
    "family": "glm4_moe",
    "num_layers": 4,
    "num_dense_layers": 2,
    "num_experts": 4,
    "experts_per_token": 2,
    "expert_width": 16,
    "num_shared_experts": 1,
    "scan_layers": True,
}


def dialogues(width=12, seed=0):
    rng = np.random.default_rng(seed)
    mask = np.arange(width)[None] < rng.integers(4, width + 1, (2, 1))
    tokens = rng.integers(0, NUM_TOKENS, mask.shape).astype(np.int32)
    return SFTBatch(tokens, mask, mask)


def language_loss(policy, batch):
    logprobs, _ = dialogue_logprobs(policy, batch, num_tokens=NUM_TOKENS, chunk_size=0)
    loss = Mean.of(-logprobs, batch.loss_mask)
    return loss.total / loss.count, {"loss": loss}


def loss_of_two_batches(policy, batches):
    """As PPO and DPO have it: the model is called twice, with other shapes."""
    first, metrics = language_loss(policy, batches[0])
    second, _ = language_loss(policy, batches[1])
    return first + 0.5 * second, metrics


def score_loss(model, batch):
    scores = model(batch.tokens, batch.mask)
    loss = Mean.of((scores - 1.0) ** 2, batch.mask)
    return loss.total / loss.count, {"loss": loss}


def train(loss_fn, model, batches, optimizer):
    @jax.jit
    def step(state, batch):
        return optimizer_step(
            loss_fn, state, batch, optimizer=optimizer, microbatches=1
        )

    state = TrainState.create(model, optimizer)
    for batch in batches:
        state, metrics = step(state, batch)
    return state, metrics


def assert_fused_equals_ordinary(loss_fn, model, batches, optimizer):
    expected = train(loss_fn, model, batches, optimizer)
    fused = dataclasses.replace(optimizer, fused=True)
    got = train(loss_fn, model, batches, fused)
    assert_trees_close(got, expected, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize(
    ("optimizer", "clip"),
    [
        pytest.param(SGD, "global", id="sgd-global", marks=pytest.mark.gpu),
        pytest.param(ADAMW, "per_layer", id="adamw-per_layer", marks=pytest.mark.gpu),
        pytest.param(ADAFACTOR, "global", id="adafactor-global"),
        pytest.param(SGD, "per_layer", id="sgd-per_layer", marks=pytest.mark.slow),
        pytest.param(ADAMW, "global", id="adamw-global", marks=pytest.mark.slow),
        pytest.param(
            ADAFACTOR, "per_layer", id="adafactor-per_layer", marks=pytest.mark.slow
        ),
    ],
)
def test_fused_updates_are_ordinary_ones(optimizer, clip):
    optimizer = dataclasses.replace(optimizer, clip=clip)
    policy, batches = model(scan_layers=True), [dialogues(seed=0), dialogues(seed=1)]
    assert_fused_equals_ordinary(language_loss, policy, batches, optimizer)


def test_layers_before_those_with_experts_are_updated_last():
    """And with them the embedding; the correction of the router stays as it is."""
    policy = model(**EXPERTS)
    policy.blocks.mlp.router.correction[...] += 0.1
    assert_fused_equals_ordinary(language_loss, policy, [dialogues()] * 2, ADAMW)
    after, metrics = train(language_loss, policy, [dialogues()], ADAMW)
    assert 0.25 < metrics["experts/busiest"].value() <= 0.5
    assert 0 <= metrics["experts/least"].value() < 0.25
    after = after.model
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(policy), jax.tree.leaves(after), strict=True
    ):
        name = jax.tree_util.keystr(path)
        assert np.array_equal(x, y) == ("correction" in name), name


def test_a_loss_may_call_the_model_several_times():
    batch = dialogues(width=12), dialogues(width=8, seed=1)
    assert_fused_equals_ordinary(loss_of_two_batches, model(), [batch], SGD)


def test_a_tied_embedding_gets_the_gradients_of_both_its_uses():
    assert_fused_equals_ordinary(language_loss, model(tied=True), [dialogues()], SGD)


def test_a_score_model_is_updated_in_its_backbone_and_its_head():
    scorer = ScoreModel(model(), rngs=nnx.Rngs(1))
    assert_fused_equals_ordinary(score_loss, scorer, [dialogues()], SGD)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("clip", ["global", "per_layer"])
def test_a_loss_that_is_not_finite_changes_nothing(clip, fused):
    optimizer = dataclasses.replace(ADAMW, clip=clip, fused=fused)

    def loss_fn(model, batch):
        loss, metrics = language_loss(model, batch)
        return loss + jnp.inf, metrics  # its gradient is finite

    start = TrainState.create(model(), optimizer)
    after, metrics = train(loss_fn, model(), [dialogues()], optimizer)
    assert metrics["optim/skipped"] == 1
    for x, y in zip(
        jax.tree.leaves((after.model, after.opt_state)),
        jax.tree.leaves((start.model, start.opt_state)),
        strict=True,
    ):
        np.testing.assert_array_equal(x, y)


def test_accumulation_and_a_fused_update_exclude_each_other():
    optimizer = dataclasses.replace(SGD, fused=True)
    state = TrainState.create(model(), optimizer)
    step = functools.partial(optimizer_step, optimizer=optimizer, microbatches=2)
    with pytest.raises(ValueError, match="microbatches=1"):
        step(language_loss, state, dialogues())
