"""The details of PPO that fail silently when they are wrong."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rlhf_jax.batches import PromptBatch, SFTBatch
from rlhf_jax.data.batching import pad_right
from rlhf_jax.generation.rollout import repeat_prompts, rollout
from rlhf_jax.generation.sampling import Sampling
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.heads import ScoreModel, last_real_token
from rlhf_jax.models.presets import preset
from rlhf_jax.training import ppo
from rlhf_jax.training.accumulate import value_and_grad
from rlhf_jax.training.optimizers import adamw
from rlhf_jax.training.state import TrainState

NUM_TOKENS = 30
HYPER = ppo.Hyper(
    num_tokens=NUM_TOKENS,
    temperature=0.8,
    chunk_size=0,
    advantage="gae",
    samples_per_prompt=1,
    normalise_scores=False,
    whiten_rewards=False,
    whiten_advantages=False,
    missing_end_penalty=0.5,
    score_clip=10.0,
    kl_in_loss=False,
    kl_target=0.0,
    kl_horizon=100.0,
    gamma=1.0,
    lam=0.95,
    clip_range=0.2,
    dual_clip=0.0,
    value_clip_range=0.2,
    beta_sft=0.0,
    ppo_epochs=1,
    minibatches=2,
    microbatches=1,
)
SAMPLING = Sampling(
    max_new_tokens=6,
    temperature=0.8,
    top_k=0,
    top_p=1.0,
    min_new_tokens=0,
    stop_ids=(1, 2, 3),
    pad_id=0,
    num_tokens=NUM_TOKENS,
)
ROWS = 8


def optimizer(learning_rate: float):
    return adamw(
        lambda step: learning_rate,
        b1=0.9,
        b2=0.95,
        eps=1e-8,
        weight_decay=0.0,
        clip_norm=1.0,
    )


@functools.cache
def make_models(dtype="float32"):
    config = preset(
        "micro", num_layers=1, vocab_size=32, context_length=64, dtype=dtype
    )
    policy = ChatGLM(config, rngs=nnx.Rngs(0))
    policy = jax.tree.map(lambda x: 4 * x if x.ndim > 1 else x, policy)
    reward = ScoreModel(policy, rngs=nnx.Rngs(1))
    return policy, reward, ScoreModel(policy, rngs=nnx.Rngs(2))


def make_state(learning_rate=1e-3, *, kl_coef=0.05, critic=True, dtype="float32"):
    policy, reward, value = make_models(dtype)
    tx = optimizer(learning_rate)
    state = ppo.PPOState(
        TrainState.create(policy, tx),
        TrainState.create(value, tx) if critic else None,
        jnp.float32(kl_coef),
        ppo.advantages_.init_moments(),
        jnp.int32(0),
    )
    return state, ppo.Frozen(policy, reward), tx


def make_prompts(rows=ROWS, width=5, pad=0):
    rng = np.random.default_rng(0)
    tokens = rng.integers(4, NUM_TOKENS, (rows, width)).astype(np.int32)
    lengths = rng.integers(1, width + 1, rows)
    mask = np.arange(width)[None] >= width - lengths[:, None]
    pads = ((0, 0), (pad, 0))
    return PromptBatch(
        np.pad(np.where(mask, tokens, 0), pads), np.pad(mask, pads), np.arange(rows)
    )


@functools.cache
def experience_step(hyper):
    return jax.jit(functools.partial(ppo.make_experience, hyper=hyper))


@functools.cache
def update_step(hyper, learning_rate):
    tx = optimizer(learning_rate)
    return jax.jit(
        functools.partial(
            ppo.update, hyper=hyper, policy_optimizer=tx, value_optimizer=tx
        )
    )


def changed(**fields) -> ppo.Hyper:
    return dataclasses.replace(HYPER, **fields)


def experience_of(state, frozen, prompts, hyper=HYPER, baseline=0.0):
    """(rollout, experience, changes of the state, metrics)."""
    rolled = rollout(state.policy.model, prompts, jax.random.key(0), SAMPLING)
    scores = jnp.full(rolled.responses.shape[0], baseline)
    return rolled, *experience_step(hyper)(state, frozen, rolled, scores)


def update(state, experience, hyper=HYPER, seed=1, sft=None, learning_rate=1e-3):
    step = update_step(hyper, learning_rate)
    return step(state, experience, sft, jax.random.key(seed))


def assert_trees_close(a, b, atol):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, atol=atol)


def same(a, b) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


# Rollout and trainer compute the same function.


def test_the_first_ratio_is_1_and_sampler_and_trainer_agree():
    """At a temperature other than 1, with padding on both sides."""
    state, frozen, _ = make_state()
    _, experience, _, metrics = experience_of(state, frozen, make_prompts())
    assert metrics["rollout/logprob_gap_max"] < 1e-4
    assert metrics["rollout/ratio_outside"].value() == 0
    _, metrics = update(state, experience)
    assert abs(metrics["val/ratio_first"].value() - 1) < 1e-4
    assert abs(metrics["val/ratio"].value() - 1) > 1e-6  # later ones move


def test_another_temperature_than_the_rollouts_shows_in_the_gap():
    state, frozen, _ = make_state()
    hyper = changed(temperature=1.0)
    *_, metrics = experience_of(state, frozen, make_prompts(), hyper)
    assert metrics["rollout/logprob_gap_max"] > 0.05
    assert metrics["rollout/ratio_outside"].value() > 0.05


def test_the_gap_of_bfloat16_is_reported_and_the_first_ratio_is_still_1():
    """The ratio compares the trainer with itself, so rounding does not move it."""
    state, frozen, _ = make_state(dtype="bfloat16")
    _, experience, _, metrics = experience_of(state, frozen, make_prompts())
    assert 0 <= metrics["rollout/logprob_gap_mean"].value() < 0.05
    assert metrics["rollout/logprob_gap_max"] < 0.5
    assert 0 <= metrics["rollout/ratio_outside"].value() < 0.5
    _, metrics = update(state, experience)
    assert abs(metrics["val/ratio_first"].value() - 1) < 1e-4


# Nothing but real tokens counts.


def test_nothing_after_the_end_has_reward_advantage_value_or_logprob():
    state, frozen, _ = make_state()
    rolled, experience, *_ = experience_of(state, frozen, make_prompts())
    real = np.asarray(rolled.response_mask)
    assert not real.all()
    arrays = (
        experience.old_logprobs,
        experience.ref_logprobs,
        experience.old_values,
        experience.advantages,
        experience.returns,
    )
    for array in map(np.asarray, arrays):
        assert (array[~real] == 0).all()
        assert (array[real] != 0).any()


def test_garbage_after_the_end_changes_no_loss_and_no_gradient():
    """Infinities where masked: a mask applied after `exp` would make them nan."""
    state, frozen, _ = make_state()
    rolled, experience, *_ = experience_of(state, frozen, make_prompts())
    mask = rolled.response_mask
    names = ("old_logprobs", "ref_logprobs", "advantages", "old_values", "returns")
    garbage = {
        name: jnp.where(mask, getattr(experience, name), jnp.inf) for name in names
    }
    garbage["responses"] = jnp.where(mask, experience.responses, NUM_TOKENS + 1)
    hyper = changed(kl_in_loss=True)
    clean, metrics = update(state, experience, hyper)
    dirty, dirty_metrics = update(
        state, dataclasses.replace(experience, **garbage), hyper
    )
    assert same((clean, metrics), (dirty, dirty_metrics))


def test_left_padding_changes_no_advantage_and_no_update():
    state, frozen, _ = make_state()
    results = []
    for pad in (0, 3):
        _, experience, *_ = experience_of(state, frozen, make_prompts(pad=pad))
        new, _ = update(state, experience)
        results.append((experience.advantages, experience.returns, new.policy.model))
    assert_trees_close(*results, atol=2e-4)


def test_right_padding_changes_no_advantage_and_no_update():
    state, frozen, _ = make_state()
    rolled, experience, *_ = experience_of(state, frozen, make_prompts())

    def pad(x):
        return jnp.pad(x, ((0, 0), (0, 2)))

    padded = dataclasses.replace(
        rolled,
        responses=pad(rolled.responses),
        response_mask=pad(rolled.response_mask),
        logprobs=pad(rolled.logprobs),
    )
    longer, *_ = experience_step(HYPER)(state, frozen, padded, jnp.zeros(ROWS))
    np.testing.assert_allclose(pad(experience.advantages), longer.advantages, atol=1e-5)
    a, _ = update(state, experience)
    b, _ = update(state, longer)
    assert_trees_close(a.policy.model, b.policy.model, atol=2e-4)


def test_the_order_of_a_batch_permutes_advantages_and_changes_no_update():
    state, frozen, _ = make_state()
    whole = changed(minibatches=1)
    rolled, experience, *_ = experience_of(state, frozen, make_prompts(), whole)
    order = np.random.default_rng(0).permutation(ROWS)
    shuffled = jax.tree.map(lambda x: x[order], rolled)
    other, *_ = experience_step(whole)(state, frozen, shuffled, jnp.zeros(ROWS))
    np.testing.assert_allclose(
        experience.advantages[order], other.advantages, atol=1e-5
    )
    a, _ = update(state, experience, whole)
    b, _ = update(state, other, whole)
    assert_trees_close(a.policy.model, b.policy.model, atol=1e-4)


def test_microbatches_change_no_gradient_and_no_loss():
    """The sum over tokens, not the mean of means: their parts have unequal counts."""
    state, frozen, _ = make_state()
    hyper = changed(beta_sft=0.3)
    _, experience, *_ = experience_of(state, frozen, make_prompts(), hyper)
    sft = make_sft()
    assert len(set(np.asarray(experience.response_mask).sum(-1))) > 1
    share = functools.partial(
        ppo.policy_loss_fn,
        num_tokens=experience.response_mask.sum(),
        num_sft_tokens=sft.loss_mask.sum(),
        kl_coef=state.kl_coef,
        hyper=hyper,
    )
    results = [
        jax.jit(functools.partial(value_and_grad, share, microbatches=parts))(
            state.policy.model, (experience, sft)
        )
        for parts in (1, 4)
    ]
    assert_trees_close(*results, atol=2e-4)


def make_sft(rows=ROWS, length=7):
    rng = np.random.default_rng(1)
    mask = np.arange(length)[None] < rng.integers(2, length + 1, (rows, 1))
    tokens = np.where(mask, rng.integers(4, NUM_TOKENS, (rows, length)), 0)
    loss_mask = mask & (np.arange(length) > 0)
    return SFTBatch(jnp.asarray(tokens, jnp.int32), jnp.asarray(mask), loss_mask)


# Scores and rewards.


def test_a_response_that_never_ends_pays_at_its_last_token():
    state, frozen, _ = make_state()
    hyper = changed(lam=0.0)  # the advantage is the TD error
    free = dataclasses.replace(hyper, missing_end_penalty=0.0)
    rolled, fined, *_ = experience_of(state, frozen, make_prompts(), hyper)
    _, unfined, *_ = experience_of(state, frozen, make_prompts(), free)
    difference = np.asarray(unfined.advantages - fined.advantages)
    ended = np.asarray(rolled.ended)
    assert ended.any()
    assert not ended.all()
    np.testing.assert_allclose(difference[ended], 0.0, atol=1e-6)
    np.testing.assert_allclose(difference[~ended, -1], 0.5, atol=1e-5)
    np.testing.assert_allclose(difference[~ended, :-1], 0.0, atol=1e-6)


def test_the_score_stands_at_the_last_token_and_is_that_of_the_whole_response():
    """With KL, discount and values out of the way, returns are the score itself."""
    state, frozen, _ = make_state(kl_coef=0.0)
    hyper = changed(lam=1.0, missing_end_penalty=0.0)
    rolled, experience, *_ = experience_of(state, frozen, make_prompts(), hyper)
    found = jax.tree.map(np.asarray, rolled)
    rows = [
        [*found.prompts[row][found.prompt_mask[row]], *response[mask]]
        for row, (response, mask) in enumerate(
            zip(found.responses, found.response_mask, strict=True)
        )
    ]
    tokens, mask = map(jnp.asarray, pad_right(rows, 11, 0))  # no padding in between
    scores = last_real_token(
        jax.jit(ScoreModel.__call__)(frozen.reward, tokens, mask), mask
    )
    expected = np.where(found.response_mask, np.asarray(scores)[:, None], 0.0)
    np.testing.assert_allclose(experience.returns, expected, atol=1e-4)


def test_fractional_rewards_and_the_baseline_survive():
    state, frozen, _ = make_state()
    rolled, plain, _, metrics = experience_of(state, frozen, make_prompts())
    _, shifted, *_ = experience_of(state, frozen, make_prompts(), baseline=0.25)
    last = np.asarray(rolled.response_mask).sum(-1) - 1
    change = np.asarray(plain.advantages - shifted.advantages)[np.arange(ROWS), last]
    np.testing.assert_allclose(change, 0.25, atol=1e-5)
    assert metrics["objective/kl"].value() == pytest.approx(0.0, abs=1e-5)


def test_scores_are_normalised_by_all_that_was_seen():
    state, frozen, _ = make_state(kl_coef=0.0)
    hyper = changed(
        normalise_scores=True, missing_end_penalty=0.0, lam=1.0, value_clip_range=1e6
    )
    _, experience, changes, metrics = experience_of(
        state, frozen, make_prompts(), hyper
    )
    normalised = np.asarray(experience.returns[:, 0])
    assert normalised.mean() == pytest.approx(0.0, abs=1e-5)
    assert normalised.std() == pytest.approx(1.0, abs=1e-4)
    assert float(changes["moments"].count) == ROWS
    mean = float(changes["moments"].mean)
    assert metrics["objective/scores"].value() == pytest.approx(mean, abs=1e-5)
    after = dataclasses.replace(state, **changes)
    _, _, changes, _ = experience_of(after, frozen, make_prompts(), hyper)
    assert float(changes["moments"].count) == 2 * ROWS


def test_whitened_advantages_have_mean_0_and_variance_1_over_real_tokens():
    state, frozen, _ = make_state()
    hyper = changed(whiten_advantages=True)
    rolled, experience, *_ = experience_of(state, frozen, make_prompts(), hyper)
    real = np.asarray(experience.advantages)[np.asarray(rolled.response_mask)]
    assert real.mean() == pytest.approx(0.0, abs=1e-5)
    assert real.std() == pytest.approx(1.0, abs=1e-3)


def test_whitened_rewards_keep_their_mean():
    hyper = changed(whiten_rewards=True, lam=0.0, gamma=0.0)
    rng = np.random.default_rng(0)
    rewards = jnp.asarray(rng.normal(2.0, 5.0, (4, 6)), jnp.float32)
    mask = jnp.ones((4, 6), bool)
    whitened, _ = ppo.estimate_advantages(rewards, jnp.zeros((4, 6)), mask, hyper=hyper)
    assert whitened.mean() == pytest.approx(float(rewards.mean()), abs=1e-4)
    assert whitened.std() == pytest.approx(1.0, abs=1e-3)


def test_the_price_of_the_kl_follows_its_target():
    """The policy is its reference: the KL is 0, far below the target."""
    state, frozen, _ = make_state(kl_coef=0.1)
    hyper = changed(kl_target=5.0)
    _, _, changes, _ = experience_of(state, frozen, make_prompts(), hyper)
    assert float(changes["kl_coef"]) == pytest.approx(0.1 * (1 - 0.2 * ROWS / 100))


# Without a critic.


@pytest.mark.parametrize("advantage", ["rloo", "grpo", "remax"])
def test_without_a_critic_a_response_has_one_advantage_and_there_is_no_value(advantage):
    state, frozen, _ = make_state(critic=False)
    hyper = changed(advantage=advantage, samples_per_prompt=2, missing_end_penalty=0.0)
    prompts = repeat_prompts(make_prompts(rows=4), 2)
    rolled, experience, _, metrics = experience_of(state, frozen, prompts, hyper, 0.25)
    assert experience.old_values is None
    assert experience.returns is None
    assert "val/explained_variance" not in metrics
    mask, got = np.asarray(rolled.response_mask), np.asarray(experience.advantages)
    assert (got[~mask] == 0).all()
    scores = np.asarray(
        ppo.response_scores(frozen.reward, *ppo.one_response(rolled))[:, 0]
    ).reshape(4, 2)
    expected = {
        "rloo": scores - scores[:, ::-1],  # the other one is left out
        "grpo": np.sign(scores - scores[:, ::-1]),
        "remax": scores - 0.25,
    }[advantage].reshape(8)
    np.testing.assert_allclose(got[:, 0], expected, atol=5e-3)
    np.testing.assert_allclose(got, np.where(mask, got[:, :1], 0.0), atol=1e-6)
    new, metrics = update(state, experience, hyper)
    assert new.value is None
    assert "loss/value" not in metrics
    assert not same(new.policy.model, state.policy.model)


def test_several_responses_to_a_prompt_differ_and_the_first_keep_their_numbers():
    prompts = make_prompts(rows=4)
    repeated = repeat_prompts(prompts, 3)
    np.testing.assert_array_equal(repeated.index, np.arange(12))
    np.testing.assert_array_equal(repeated.prompts[::3], prompts.prompts)
    np.testing.assert_array_equal(repeated.prompts[2::3], prompts.prompts)
    state, _, _ = make_state()
    rolled = rollout(state.policy.model, repeated, jax.random.key(0), SAMPLING)
    responses = np.asarray(rolled.responses).reshape(4, 3, -1)
    assert (responses[:, 0] != responses[:, 1]).any(-1).all()


# The update.


def test_the_frozen_models_are_no_part_of_what_is_updated():
    """No gradient can reach them, and no optimizer state belongs to them."""
    state, frozen, _ = make_state()
    _, experience, *_ = experience_of(state, frozen, make_prompts())
    new, _ = update(state, experience)
    count = sum(x.size for x in jax.tree.leaves(new))
    trained = (state.policy.model, state.value.model)
    # Adam keeps two numbers for each parameter.
    assert count < 3.1 * sum(x.size for x in jax.tree.leaves(trained))
    assert same(frozen, make_state()[1])
    assert not same(new.policy.model, state.policy.model)
    assert not same(new.value.model, state.value.model)


def test_learning_rate_0_changes_no_model_and_no_metric():
    state, frozen, _ = make_state(0.0)
    hyper = changed(ppo_epochs=2)
    _, experience, _, first = experience_of(state, frozen, make_prompts())
    new, updated = update(state, experience, hyper, learning_rate=0.0)
    assert same(state.policy.model, new.policy.model)
    assert same(state.value.model, new.value.model)
    assert updated["val/ratio"].value() == pytest.approx(1.0, abs=1e-6)
    assert updated["policy/approxkl"].value() == pytest.approx(0.0, abs=1e-9)
    assert updated["policy/clipfrac"].value() == 0.0
    *_, second = experience_of(new, frozen, make_prompts())
    assert same(first, second)


def test_a_gradient_that_is_not_finite_is_skipped_and_counted_for_either_model():
    state, frozen, _ = make_state()
    _, experience, *_ = experience_of(state, frozen, make_prompts())
    bad = jnp.full_like(experience.advantages, jnp.nan)
    for field, kept in (("advantages", "policy"), ("returns", "value")):
        broken = dataclasses.replace(experience, **{field: bad})
        new, metrics = update(state, broken)
        assert same(getattr(new, kept).model, getattr(state, kept).model)
        assert same(getattr(new, kept).opt_state, getattr(state, kept).opt_state)
        other = {"policy": "value", "value": "policy"}[kept]
        assert not same(getattr(new, other).model, getattr(state, other).model)
        assert metrics["optim/skipped"] == 2  # both minibatches, in a row
        _, metrics = update(new, broken)
        assert metrics["optim/skipped"] == 4
        _, metrics = update(new, experience)
        assert metrics["optim/skipped"] == 0


def test_dual_clip_bounds_the_loss_of_tokens_that_became_far_likelier():
    state, frozen, _ = make_state()
    _, experience, *_ = experience_of(state, frozen, make_prompts())
    far = dataclasses.replace(
        experience,
        old_logprobs=experience.old_logprobs - 3.0,
        advantages=jnp.where(experience.response_mask, -1.0, 0.0),
    )
    _, free = update(state, far)
    _, bounded = update(state, far, changed(dual_clip=3.0))
    assert free["loss/policy"].value() > 10  # the ratio is exp(3)
    assert bounded["loss/policy"].value() == pytest.approx(3.0, abs=1e-3)


def test_the_kl_in_the_loss_pulls_to_the_reference_and_leaves_the_rewards_alone():
    state, frozen, _ = make_state(kl_coef=3.0)
    hyper = changed(kl_in_loss=True)
    drifted = jax.tree.map(lambda x: 1.1 * x, state.policy.model)
    state = dataclasses.replace(
        state, policy=dataclasses.replace(state.policy, model=drifted)
    )
    _, experience, _, metrics = experience_of(state, frozen, make_prompts(), hyper)
    free = dataclasses.replace(state, kl_coef=jnp.float32(0.0))
    _, unpaid, *_ = experience_of(free, frozen, make_prompts(), hyper)
    assert same(experience.advantages, unpaid.advantages)
    still = dataclasses.replace(
        experience, advantages=jnp.zeros_like(experience.advantages)
    )
    before = None
    for _ in range(5):
        state, metrics = update(state, still, hyper)
        before = before or metrics["loss/kl"].value()
    assert metrics["loss/kl"].value() < 0.8 * before


@pytest.mark.parametrize(
    ("advantage", "kl_coef", "learns"),
    [
        ("gae", 0.01, True),
        ("gae", 1000.0, False),
        ("rloo", 0.01, True),
    ],
)
def test_a_bandit_finds_its_best_arm_unless_the_kl_is_too_dear(
    monkeypatch, advantage, kl_coef, learns
):
    """One token a response, and token 7 is worth 1: wrong signs fail here."""
    monkeypatch.setattr(
        ppo,
        "response_scores",
        lambda model, prompts, mask, responses, response_mask: (
            responses[:, :, 0] == 7
        ).astype(jnp.float32),
    )
    state, frozen, _ = make_state(3e-3, kl_coef=kl_coef, critic=advantage == "gae")
    hyper = changed(
        temperature=1.0,
        missing_end_penalty=0.0,
        score_clip=1e6,
        advantage=advantage,
        samples_per_prompt=8,
    )
    sampling = dataclasses.replace(SAMPLING, max_new_tokens=1, temperature=1.0)
    make = jax.jit(functools.partial(ppo.make_experience, hyper=hyper))
    prompts = repeat_prompts(make_prompts(), 8)
    for i in range(30):
        rolled = rollout(state.policy.model, prompts, jax.random.key(i), sampling)
        experience, _, metrics = make(state, frozen, rolled, jnp.zeros(64))
        state, _ = update(state, experience, hyper, 100 + i, learning_rate=3e-3)
    if learns:
        assert metrics["objective/scores"].value() > 0.8
    else:
        assert metrics["objective/scores"].value() < 0.2
        # To find the arm costs log(30) = 3.4 nats; Adam's steps wander a little.
        assert metrics["objective/kl"].value() < 0.3
