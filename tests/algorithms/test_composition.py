"""How the losses are put together: each term by its sign and weight, over its tokens.

The formulas have tests of their own (tests/losses); here a step of plain gradient
descent is compared with the sum of gradients that were computed apart.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms import dpo, ppo, sft
from rlhf_jax.data.batching import preference_batch
from rlhf_jax.generation.scoring import one_response, response_scores
from rlhf_jax.losses import kl
from rlhf_jax.ppo.forward import policy_logprobs
from rlhf_jax.training.state import TrainState
from tests.algorithms.ppo_parts import (
    NUM_TOKENS,
    ROWS,
    SGD,
    changed,
    experience_of,
    make_prompts,
    make_sft,
    make_state,
    update,
)
from tests.trees import assert_trees_close

BETA_SFT = 0.3
PAIRS = [([5, 6, 7], [11, 12, 13], [21, 22]), ([8], [23], [24, 25, 26])]
DPO = dpo.Hyper(
    num_tokens=NUM_TOKENS,
    chunk_size=0,
    loss="dpo",
    beta=0.2,
    label_smoothing=0.0,
    gamma=0.0,
    alpha=0.0,
    desirable_weight=1.0,
    undesirable_weight=1.0,
    beta_sft=BETA_SFT,
    microbatches=1,
)


def sft_loss_from_logits(policy, batch):
    """-log p of the tokens with loss, each given what stands before it: their mean."""
    logits = policy(batch.tokens, batch.mask)[:, :-1, :NUM_TOKENS]
    logprobs = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(logprobs, batch.tokens[:, 1:, None], -1)[..., 0]
    wanted = batch.loss_mask[:, 1:]
    return -jnp.where(wanted, chosen, 0.0).sum() / wanted.sum()


def step_of_sft(policy):
    """The model after a step, and the gradients that it should have followed."""
    step = functools.partial(
        sft.train_step, optimizer=SGD, hyper=sft.Hyper(NUM_TOKENS, 0, 1)
    )
    state, _ = jax.jit(step)(TrainState.create(policy, SGD), make_sft(), 1.0)
    return state.model, lambda policy: sft_loss_from_logits(policy, make_sft())


def step_of_dpo(policy):
    batch = jax.tree.map(jnp.asarray, preference_batch(PAIRS, pad_id=0, multiple=4))
    ref_logprobs = jnp.array([[-9.0, -8.0], [-3.0, -7.0]])
    step = functools.partial(dpo.train_step, optimizer=SGD, hyper=DPO)
    state, _ = jax.jit(step)(
        TrainState.create(policy, SGD), batch, ref_logprobs, make_sft(), None, 1.0
    )

    def loss(policy):
        preference, _ = dpo.batch_loss(
            policy, batch, hyper=DPO, ref_logprobs=ref_logprobs
        )
        return preference + BETA_SFT * sft_loss_from_logits(policy, make_sft())

    return state.model, loss


def step_of_ppo(policy):
    hyper = changed(beta_sft=BETA_SFT, minibatches=1)
    state, frozen, _ = make_state(tx=SGD)
    _, experience, *_ = experience_of(state, frozen, make_prompts(), hyper)
    batches = jax.tree.map(lambda x: x[None], make_sft())
    new, _ = update(state, experience, hyper, sft=batches, learning_rate=1.0, tx=SGD)

    def loss(policy):
        clipped, _ = ppo.batch_loss(policy, experience, hyper=hyper)
        return clipped + BETA_SFT * sft_loss_from_logits(policy, make_sft())

    return new.policy.model, loss


@pytest.mark.parametrize("step", [step_of_sft, step_of_dpo, step_of_ppo])
def test_a_step_follows_the_sum_of_its_terms_gradients(step):
    """The SFT term adds to the loss, with its weight, over the tokens that carry loss:
    `make_sft` leaves out the middle of its dialogues."""
    policy = make_state()[0].policy.model
    stepped, loss = step(policy)
    gradient = jax.jit(jax.grad(loss))(policy)
    expected = jax.tree.map(lambda x, g: x - g, policy, gradient)
    assert_trees_close(stepped, expected, atol=1e-5)
    sft_gradient = jax.jit(jax.grad(sft_loss_from_logits))(policy, make_sft())
    assert max(jnp.abs(g).max() for g in jax.tree.leaves(sft_gradient)) > 1e-3


def drifted(state):
    """The state with a policy that is not its reference."""
    model = jax.tree.map(lambda x: 1.1 * x, state.policy.model)
    return dataclasses.replace(
        state, policy=dataclasses.replace(state.policy, model=model)
    )


def kl_of(experience):
    """The KL of each response, in nats; its tokens' sum."""
    gap = np.asarray(experience.old_logprobs) - np.asarray(experience.ref_logprobs)
    return np.where(experience.response_mask, gap, 0.0).sum(-1)


def test_the_coefficient_follows_the_kl_of_a_policy_that_moved():
    """A response's KL, the sum of its tokens', is a tenth above the target."""
    state, frozen, _ = make_state(kl_coef=0.1)
    _, experience, *_ = experience_of(drifted(state), frozen, make_prompts())
    observed = kl_of(experience).mean()
    assert observed > 0.01
    hyper = changed(kl_target=float(observed) / 1.1)
    _, _, changes, metrics = experience_of(
        drifted(state), frozen, make_prompts(), hyper
    )
    expected = 0.1 * (1 + 0.1 * ROWS / hyper.kl_horizon)
    assert float(changes["kl_coef"]) == pytest.approx(expected, rel=1e-5)
    assert metrics["objective/kl_coef"].value() == pytest.approx(0.1)


def test_the_metrics_of_an_experience_are_those_of_its_arrays():
    state, frozen, _ = make_state(kl_coef=0.1)
    state, hyper = drifted(state), changed(missing_end_penalty=0.0)
    rollout, experience, _, metrics = experience_of(
        state, frozen, make_prompts(), hyper, baseline=0.25
    )
    mask, sequence_kl = np.asarray(rollout.response_mask), kl_of(experience)
    scores = np.asarray(response_scores(frozen.reward, *one_response(rollout))[:, 0])
    entropy = policy_logprobs(state.policy.model, rollout, hyper=hyper).entropy
    assert not mask.all()
    for name, expected in {
        "objective/kl": sequence_kl.mean(),
        "objective/scores": scores.mean(),
        "objective/baselined_scores": scores.mean() - 0.25,
        "objective/entropy": np.asarray(entropy)[mask].mean(),
        "objective/rlhf_reward": (scores - 0.25 - 0.1 * sequence_kl).mean(),
        "objective/non_score_reward": -0.1 * sequence_kl.mean(),
        "response/length_mean": mask.sum(-1).mean(),
        "response/ended_fraction": np.asarray(rollout.ended).mean(),
    }.items():
        assert metrics[name].value() == pytest.approx(expected, rel=1e-3), name
    assert abs(sequence_kl.mean()) > 0.01


def test_scores_are_clipped_on_both_sides_after_the_baseline():
    """With lambda 1 and without a KL the return of a response is its reward."""
    state, frozen, _ = make_state(kl_coef=0.0)
    hyper = changed(lam=1.0, missing_end_penalty=0.0)
    _, free, *_ = experience_of(state, frozen, make_prompts(), hyper)
    rewards = np.asarray(free.returns[:, 0])
    limit = float(np.median(np.abs(rewards)))
    assert rewards.min() < -limit < limit < rewards.max()
    hyper = dataclasses.replace(hyper, score_clip=limit)
    _, clipped, *_ = experience_of(state, frozen, make_prompts(), hyper)
    expected = np.clip(rewards, -limit, limit)
    np.testing.assert_allclose(clipped.returns[:, 0], expected, atol=1e-5)


def test_every_epoch_has_an_order_of_its_own(monkeypatch):
    class Seen(Exception):
        pass

    def scan(function, carry, xs):
        raise Seen(np.asarray(xs[0]))

    state, frozen, _ = make_state()
    hyper = changed(ppo_epochs=3, minibatches=2)
    _, experience, *_ = experience_of(state, frozen, make_prompts())
    rates = jnp.zeros(6)
    monkeypatch.setattr(jax.lax, "scan", scan)
    with pytest.raises(Seen) as seen:
        ppo.train_step(
            state,
            experience,
            None,
            jax.random.key(0),
            (rates, rates),
            policy_optimizer=SGD,
            value_optimizer=SGD,
            hyper=hyper,
        )
    orders = seen.value.args[0].reshape(3, ROWS)
    assert (np.sort(orders) == np.arange(ROWS)).all()
    assert len({tuple(order) for order in orders}) == 3


def test_values_are_clipped_around_the_old_ones():
    state, frozen, _ = make_state()
    rollout, experience, *_ = experience_of(state, frozen, make_prompts())
    mask, hyper = np.asarray(rollout.response_mask), changed(value_clip_range=0.1)
    values = np.asarray(experience.old_values)
    noise = np.random.default_rng(0).normal(0.0, 1.0, (2, *values.shape))
    old, returns = (values + noise).astype(np.float32)
    moved = dataclasses.replace(
        experience, old_values=jnp.asarray(old), returns=jnp.asarray(returns)
    )
    loss, metrics = jax.jit(
        functools.partial(ppo.value_loss_fn, num_tokens=mask.sum(), hyper=hyper)
    )(state.value.model, moved)
    held = old + np.clip(values - old, -0.1, 0.1)
    expected = 0.5 * np.maximum((values - returns) ** 2, (held - returns) ** 2)
    assert float(loss) == pytest.approx(expected[mask].mean(), rel=1e-4)
    assert 0.1 < metrics["val/clipfrac"].value() < 0.9


@pytest.mark.parametrize("aggregation", ["token", "response"])
@pytest.mark.parametrize("microbatches", [1, 4])
def test_what_the_policy_loss_is_a_mean_over(aggregation, microbatches):
    """All tokens alike, or the tokens of each response and then the responses (the
    loss of GRPO's paper, with its KL); in any number of parts."""
    state, frozen, _ = make_state(kl_coef=0.7)
    hyper = changed(
        kl_in_loss=True,
        loss_aggregation=aggregation,
        minibatches=1,
        microbatches=microbatches,
        kl_coef=0.7,
    )
    state = drifted(state)
    _, experience, *_ = experience_of(state, frozen, make_prompts(), hyper)
    mask = np.asarray(experience.response_mask)
    assert len(set(mask.sum(-1))) > 1
    _, metrics = update(state, experience, hyper, learning_rate=0.0)
    lengths = mask.sum(-1, keepdims=True)
    weights = mask / (lengths * ROWS if aggregation == "response" else mask.sum())
    token_kl = np.asarray(kl.k3(experience.old_logprobs, experience.ref_logprobs))
    expected = -np.asarray(experience.advantages)  # the ratio is 1
    assert metrics["loss/policy"].value() == pytest.approx(
        (weights * expected).sum(), rel=1e-3
    )
    assert metrics["loss/kl"].value() == pytest.approx(
        (weights * token_kl).sum(), rel=1e-3
    )
    total, _ = jax.jit(functools.partial(ppo.batch_loss, hyper=hyper))(
        state.policy.model, experience
    )
    combined = (weights * (expected + 0.7 * token_kl)).sum()
    assert float(total) == pytest.approx(combined, rel=1e-3)
