"""On a mesh, everything is as on one device: logits, losses, gradients, updates."""

import dataclasses
import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import ppo as ppo_config
from rlhf_jax.algorithms import dpo, ppo, reward, sft
from rlhf_jax.batches import PackedPairs, PreferenceBatch, Rollout, SFTBatch
from rlhf_jax.generation.sampling import Sampling
from rlhf_jax.models.config import ChatGLMConfig
from rlhf_jax.models.heads import ScoreModel
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.parallel.sharding import shard_batch, shard_parameters
from rlhf_jax.planning.hlo import collectives
from rlhf_jax.planning.programs import generation
from rlhf_jax.ppo.experience import make_experience
from rlhf_jax.ppo.forward import run_models
from rlhf_jax.ppo.options import Hyper
from rlhf_jax.ppo.state import Frozen, PPOState
from rlhf_jax.training.optimizers import sgd
from rlhf_jax.training.state import TrainState
from tests.models.families import FAMILIES, random_model, random_tokens
from tests.trees import assert_trees_close

MIXED = (2, 2, 2)
MESHES = [(8, 1, 1), (1, 8, 1), (1, 1, 8), MIXED]
ROWS, PROMPT, RESPONSE = 8, 6, 6
# Its update is the gradient.
SGD = sgd(1.0, clip_norm=0.0)
FUSED = dataclasses.replace(SGD, clip_norm=1.0, fused=True)


def config(family: str) -> ChatGLMConfig:
    """Heads and experts that eight devices can share; key-value heads that they
    cannot."""
    small = FAMILIES[family]
    if small.num_experts:
        small = dataclasses.replace(small, num_experts=8, expert_width=24)
    kv_heads = 8 if small.num_kv_heads == small.num_heads else 2
    if small.latent_width:
        small = dataclasses.replace(small, rotary_fraction=0.5, value_dim=8)
    return dataclasses.replace(
        small, num_heads=8, num_kv_heads=kv_heads, head_dim=8, scan_layers=True
    )


def dialogues(config) -> SFTBatch:
    tokens = rows_of_tokens(config, PROMPT + RESPONSE)
    lengths = np.random.default_rng(0).integers(10, 13, (ROWS, 1))
    mask = np.arange(tokens.shape[1])[None] < lengths
    return SFTBatch(tokens, mask, mask & (np.arange(tokens.shape[1])[None] >= 4))


def rows_of_tokens(config, width: int):
    """Rows whose context, for ChatGLM-6B, ends at place 2."""
    rows = [random_tokens(config, (1, width), seed=b, prompt=2) for b in range(ROWS)]
    return np.concatenate(rows)


def sft_step(model, batch, optimizer=SGD):
    state, metrics = sft.train_step(
        TrainState.create(model, optimizer),
        batch,
        1.0,
        optimizer=optimizer,
        hyper=sft.Hyper(num_tokens=60, chunk_size=4, microbatches=1),
    )
    return model(batch.tokens, batch.mask), state, metrics


def pairs(config) -> PackedPairs:
    """Prompts of 4 tokens, responses of 4, padding behind them in half of the rows."""
    tokens = rows_of_tokens(config, 12)
    ends = np.stack([np.full(ROWS, 7), 10 + np.arange(ROWS) % 2], axis=1)
    slots = np.arange(12)
    return PackedPairs(
        tokens=tokens,
        mask=slots[None] <= ends[:, 1:],
        segments=np.tile(np.repeat([0, 1, 2], 4), (ROWS, 1)).astype(np.int32),
        ends=ends.astype(np.int32),
        valid=np.arange(ROWS) < 7,
    )


def reward_step(model, batch):
    state, metrics = reward.train_step(
        TrainState.create(ScoreModel(model, rngs=nnx.Rngs(0)), SGD),
        batch,
        1.0,
        optimizer=SGD,
        hyper=reward.Hyper(
            margin=0.0,
            label_smoothing=0.0,
            score_regularisation=0.1,
            microbatches=1,
        ),
    )
    return state, metrics


def preferences(config) -> tuple[PreferenceBatch, SFTBatch]:
    rng = np.random.default_rng(1)
    prompts = rows_of_tokens(config, PROMPT)
    prompt_mask = np.ones(prompts.shape, bool)
    responses = rng.integers(0, 50, (ROWS, 2, RESPONSE)).astype(np.int32)
    lengths = rng.integers(1, RESPONSE + 1, (ROWS, 2, 1))
    mask = np.arange(RESPONSE) < lengths
    batch = PreferenceBatch(prompts, prompt_mask, responses, mask, np.arange(ROWS) < 7)
    return batch, dialogues(config)


def dpo_step(model, batch, loss="dpo"):
    hyper = dpo.Hyper(
        num_tokens=60,
        chunk_size=0,
        loss=loss,
        beta=0.1,
        label_smoothing=0.0,
        gamma=0.0,
        alpha=0.0,
        desirable_weight=1.0,
        undesirable_weight=1.0,
        beta_sft=0.5,
        microbatches=1,
    )
    reference = jax.tree.map(lambda x: 0.9 * x, model)
    return dpo.train_step(
        TrainState.create(model, SGD),
        batch[0],
        None,
        batch[1],
        reference,
        1.0,
        optimizer=SGD,
        hyper=hyper,
    )


def rollouts(config) -> tuple[Rollout, SFTBatch]:
    batch, sft_batch = preferences(config)
    logprobs = np.full((ROWS, RESPONSE), -2.0, np.float32)
    rolled = Rollout(
        prompts=batch.prompts,
        prompt_mask=batch.prompt_mask,
        responses=batch.responses[:, 0],
        response_mask=batch.response_mask[:, 0],
        logprobs=logprobs,
        ended=np.arange(ROWS) % 2 == 0,
    )
    return rolled, sft_batch


def ppo_step(model, batch, **fields):
    rolled, sft_batch = batch
    config = ppo_config.get_config("tiny")
    config.update(minibatches=1, whiten_advantages=True, kl_coef=0.1, **fields)
    hyper = Hyper.from_config(config, 60)
    scorer = ScoreModel(model, rngs=nnx.Rngs(0))
    critic = scorer if hyper.has_critic else None
    state = PPOState.create(
        model, critic, policy_optimizer=SGD, value_optimizer=SGD, hyper=hyper
    )
    reference = jax.tree.map(lambda x: 0.9 * x, model)
    outputs = run_models(state, Frozen(reference, scorer), rolled, hyper=hyper)
    experience, _, metrics = make_experience(
        state, rolled, outputs, outputs.scores, jnp.zeros(ROWS), hyper=hyper
    )
    state, update_metrics = ppo.train_step(
        state,
        experience,
        jax.tree.map(lambda x: x[None], sft_batch),
        jax.random.key(0),
        (jnp.ones(1), jnp.ones(1)),
        hyper=hyper,
        policy_optimizer=SGD,
        value_optimizer=SGD,
    )
    return experience, state, metrics, update_metrics


def generate_step(model, batch):
    sampling = Sampling(
        max_new_tokens=6,
        temperature=1.0,
        top_k=0,
        top_p=0.9,
        min_new_tokens=0,
        stop_ids=(1, 2, 3, 4),
        pad_id=0,
        num_tokens=60,
    )
    mask = jnp.ones(batch.shape, bool)
    return generation(model, batch, mask, jax.random.key(0), share=2, sampling=sampling)


GSPO = {
    "advantage": "grpo",
    "samples_per_prompt": 2,
    "objective": "gspo",
    "loss_aggregation": "constant",
    "rollout_correction": "response",
    "rollout_error_limit": 1.8,  # leaves out some of the responses
    "entropy_coef": 0.1,
}
CASES = {
    "generate": (generate_step, lambda config: rows_of_tokens(config, PROMPT)),
    "sft": (sft_step, dialogues),
    "fused": (functools.partial(sft_step, optimizer=FUSED), dialogues),
    "reward": (reward_step, pairs),
    "dpo": (dpo_step, preferences),
    "kto": (functools.partial(dpo_step, loss="kto"), preferences),
    "ppo": (ppo_step, rollouts),
    "gspo": (functools.partial(ppo_step, **GSPO), rollouts),
}


@functools.cache
def on_one_device(case: str, config: ChatGLMConfig):
    run, make_batch = CASES[case]
    return jax.device_get(jax.jit(run)(random_model(config), make_batch(config)))


def assert_a_mesh_changes_no_number(case: str, config: ChatGLMConfig, mesh: tuple):
    expected = on_one_device(case, config)
    run, make_batch = CASES[case]
    with jax.set_mesh(make_mesh(mesh)):
        model = random_model(config)
        places = jax.tree.map(lambda x: x.sharding, shard_parameters(model))
        model = jax.device_put(model, places)
        batch = shard_batch(make_batch(config))
        program = jax.jit(run).lower(model, batch).compile()
        got = program(model, batch)
    assert_trees_close(got, expected, rtol=1e-4, atol=1e-4)
    if (case, mesh) == ("sft", MIXED) and config.num_experts:
        assert_tokens_travel_and_experts_stay(program.as_text(), config)


def assert_tokens_travel_and_experts_stay(text: str, config: ChatGLMConfig):
    """In each forward pass, that of the logits and that of the update, tokens go to
    their experts with the experts' numbers and come back; in the backward pass the
    gradients of both ways go. No device gets the matrices of experts of another."""
    found = collectives(text)
    pairs = ROWS // 4 * (PROMPT + RESPONSE) * config.experts_per_token
    sent = [c for c in found if c.kind == "all-to-all" and f"[1,{pairs}" in c.shape]
    numbers = [c for c in sent if "s32" in c.shape]
    assert (len(sent), len(numbers)) == (8, 2)
    gathered = {c.shape for c in found if c.kind == "all-gather"}
    assert gathered
    assert not [x for x in gathered if re.search(rf"\[(4|8),{config.width},2,", x)]


def every_combination():
    for case, family, mesh in itertools.product(CASES, FAMILIES, MESHES):
        quick = family == "v2" and (case == "sft" or mesh == MIXED)
        # Tokens that go to their experts, and experts that come to all tokens.
        quick |= family == "glm4_moe" and case in ("sft", "generate") and mesh == MIXED
        # Latents, whose heads are split and which themselves are not.
        quick |= (family, case, mesh) == ("glm4_moe_lite", "generate", MIXED)
        # A window in the cache.
        quick |= (family, case, mesh) == ("mistral", "generate", MIXED)
        marks = () if quick else pytest.mark.slow
        yield pytest.param(case, family, mesh, marks=marks)


@pytest.mark.devices(8)
@pytest.mark.parametrize(("case", "family", "mesh"), every_combination())
def test_a_mesh_changes_no_number(case, family, mesh):
    assert_a_mesh_changes_no_number(case, config(family), mesh)
