"""Golden metrics: two steps of each algorithm on a fixed batch, to four digits.

Renew them by `python -m tests.algorithms.test_golden`, and only where a change of the
numbers is meant.
"""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rlhf_jax.algorithms import dpo, ppo, reward, sft
from rlhf_jax.batches import PackedPairs, PreferenceBatch, Rollout, SFTBatch
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.heads import ScoreModel
from rlhf_jax.models.presets import preset
from rlhf_jax.ppo.options import Hyper
from rlhf_jax.ppo.state import Frozen, PPOState
from rlhf_jax.training.metrics import to_floats
from rlhf_jax.training.optimizers import adamw
from rlhf_jax.training.state import TrainState
from tests.algorithms.ppo_parts import experience_step

FILE = Path(__file__).with_name("golden.json")
ROWS, PROMPT, RESPONSE, NUM_TOKENS = 4, 5, 6, 60
RATE = 1e-2


def fixed(make):
    """A model whose parameters no initialiser decides."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(make)
    return jax.tree.map(
        lambda x: jnp.asarray(0.1 * rng.standard_normal(x.shape), x.dtype), shapes
    )


def language_model():
    config = preset("micro", num_layers=1, vocab_size=64, context_length=64)
    return fixed(lambda: ChatGLM(config, rngs=nnx.Rngs(0)))


def score_model():
    config = preset("micro", num_layers=1, vocab_size=64, context_length=64)
    return fixed(
        lambda: ScoreModel(ChatGLM(config, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1))
    )


def reference():
    return jax.tree.map(lambda x: 0.9 * x, language_model())


def optimizer():
    return adamw(None, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, clip_norm=1.0)


def ids(*shape):
    return np.random.default_rng(len(shape)).integers(5, 55, shape).astype(np.int32)


def dialogues() -> SFTBatch:
    length = PROMPT + RESPONSE
    mask = np.arange(length) < np.array([[11], [9], [10], [7]])
    return SFTBatch(ids(ROWS, length), mask, mask & (np.arange(length) >= PROMPT))


def sft_steps():
    step = functools.partial(
        sft.train_step,
        optimizer=optimizer(),
        hyper=sft.Hyper(num_tokens=NUM_TOKENS, chunk_size=4, microbatches=2),
    )
    state = TrainState.create(language_model(), optimizer())
    state, _ = jax.jit(step)(state, dialogues(), RATE)
    return jax.jit(step)(state, dialogues(), RATE)[1]


def reward_steps():
    length = PROMPT + 2 * RESPONSE
    batch = PackedPairs(
        tokens=ids(ROWS, length),
        mask=np.ones((ROWS, length), bool),
        segments=np.tile(np.repeat([0, 1, 2], [PROMPT, RESPONSE, RESPONSE]), (ROWS, 1)),
        ends=np.tile([PROMPT + RESPONSE - 1, length - 1], (ROWS, 1)),
        valid=np.arange(ROWS) < 3,
    )
    hyper = reward.Hyper(
        margin=0.1, label_smoothing=0.1, score_regularisation=0.01, microbatches=2
    )
    step = functools.partial(reward.train_step, optimizer=optimizer(), hyper=hyper)
    state = TrainState.create(score_model(), optimizer())
    state, _ = jax.jit(step)(state, batch, RATE)
    return jax.jit(step)(state, batch, RATE)[1]


def dpo_steps(loss="dpo"):
    batch = PreferenceBatch(
        prompts=ids(ROWS, PROMPT),
        prompt_mask=np.arange(PROMPT) >= np.array([[0], [2], [1], [4]]),
        responses=ids(ROWS, 2, RESPONSE),
        response_mask=np.arange(RESPONSE) < ids(ROWS, 2, 1) % RESPONSE + 1,
        valid=np.arange(ROWS) < 3,
    )
    hyper = dpo.Hyper(
        num_tokens=NUM_TOKENS,
        chunk_size=0,
        loss=loss,
        beta=0.2,
        label_smoothing=0.0,
        gamma=0.0,
        alpha=0.0,
        desirable_weight=1.0,
        undesirable_weight=1.0,
        beta_sft=0.5,
        microbatches=2,
    )
    step = functools.partial(dpo.train_step, optimizer=optimizer(), hyper=hyper)
    inputs = (batch, None, dialogues(), None if loss == "orpo" else reference(), RATE)
    state = TrainState.create(language_model(), optimizer())
    state, _ = jax.jit(step)(state, *inputs)
    return jax.jit(step)(state, *inputs)[1]


def ppo_steps(**fields):
    lengths = np.array([[6], [3], [5], [1]])
    rollout = Rollout(
        prompts=ids(ROWS, PROMPT),
        prompt_mask=np.arange(PROMPT) >= np.array([[0], [2], [1], [4]]),
        responses=ids(ROWS, RESPONSE),
        response_mask=np.arange(RESPONSE) < lengths,
        logprobs=np.full((ROWS, RESPONSE), -4.0, np.float32),
        ended=np.array([False, True, True, True]),
    )
    hyper = Hyper(
        num_tokens=NUM_TOKENS,
        temperature=0.8,
        chunk_size=0,
        advantage="gae",
        samples_per_prompt=1,
        max_response_tokens=RESPONSE,
        group_std=True,
        group_epsilon=1e-4,
        normalise_scores=True,
        whiten_rewards=True,
        whiten_advantages=True,
        missing_end_penalty=0.5,
        mask_overlong=False,
        score_clip=1.0,
        kl_coef=0.1,
        kl_in_loss=False,
        kl_target=1.0,
        kl_horizon=100.0,
        reference_rate=0.0,
        rollout_param_dtype="same",
        prompts_ahead=0,
        one_step_off_policy=False,
        rollout_correction="none",
        rollout_weight_cap=2.0,
        rollout_error_limit=0.5,
        gamma=0.99,
        lam=0.95,
        objective="ppo",
        clip_range=0.1,
        clip_range_high=0.0,
        dual_clip=3.0,
        entropy_coef=0.0,
        loss_aggregation="token",
        value_clip_range=0.2,
        beta_sft=0.5,
        ppo_epochs=2,
        minibatches=2,
        microbatches=1,
    )
    hyper = dataclasses.replace(hyper, **fields)
    optimizers = {"policy_optimizer": optimizer(), "value_optimizer": optimizer()}
    state = PPOState.create(
        language_model(),
        score_model() if hyper.has_critic else None,
        reference() if hyper.reference_rate else None,
        **optimizers,
        hyper=hyper,
    )
    experience, _, metrics = experience_step(hyper)(
        state,
        Frozen(reference(), score_model()),
        rollout,
        np.array([0.1, -0.2, 0.3, 0.0], np.float32),
    )
    rates = np.full(hyper.num_updates, RATE, np.float32)
    stack = jax.tree.map(lambda x: np.stack([x] * hyper.num_updates), dialogues())
    step = jax.jit(functools.partial(ppo.train_step, **optimizers, hyper=hyper))
    _, update_metrics = step(
        state, experience, stack, jax.random.key(0), (rates, rates)
    )
    return metrics | update_metrics


# The options that make a published variant of PPO (configs/variants).
GROUPS = {
    "samples_per_prompt": 2,
    "whiten_rewards": False,
    "whiten_advantages": False,
    "normalise_scores": False,
    "dual_clip": 0.0,
    "kl_in_loss": True,
}
VARIANTS = {
    "dapo": GROUPS
    | {"advantage": "grpo", "clip_range_high": 0.28, "mask_overlong": True},
    "dr_grpo": GROUPS
    | {"advantage": "grpo", "group_std": False, "loss_aggregation": "constant"},
    "gspo": GROUPS
    | {
        "advantage": "grpo",
        "objective": "gspo",
        "loss_aggregation": "response",
        "rollout_correction": "response",
        "rollout_error_limit": 10.0,
    },
    "cispo": GROUPS
    | {
        "advantage": "rloo",
        "objective": "cispo",
        "rollout_correction": "token",
        "rollout_error_limit": 10.0,
    },
    "reinforce_pp": GROUPS
    | {
        "advantage": "reinforce_pp",
        "samples_per_prompt": 1,
        "kl_in_loss": False,
        "entropy_coef": 0.1,
        "reference_rate": 0.2,
    },
}
STEPS = {
    "sft": sft_steps,
    "reward": reward_steps,
    "dpo": dpo_steps,
    "kto": functools.partial(dpo_steps, "kto"),
    "orpo": functools.partial(dpo_steps, "orpo"),
    "ppo": ppo_steps,
    **{name: functools.partial(ppo_steps, **x) for name, x in VARIANTS.items()},
}


@pytest.mark.parametrize("name", STEPS)
def test_two_steps_have_their_golden_metrics(name):
    found, golden = to_floats(STEPS[name]()), json.loads(FILE.read_text())[name]
    differing = {
        key: (golden.get(key), found.get(key))
        for key in golden.keys() | found.keys()
        if found.get(key) != pytest.approx(golden.get(key), rel=1e-4, abs=1e-6)
    }
    assert not differing, (
        f"Metrics of {name} (golden, now) differ. Where a loss, a default or a metric "
        "was meant to change, renew them by `python -m tests.algorithms.test_golden` "
        "and say so in CHANGELOG.md; otherwise a change has reached training that "
        "should not have."
    )


if __name__ == "__main__":
    jax.config.update("jax_default_matmul_precision", "highest")
    numbers = {name: to_floats(steps()) for name, steps in STEPS.items()}
    FILE.write_text(json.dumps(numbers, indent=1) + "\n")
