from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.losses import masked
from rlhf_jax.losses.aggregation import aggregate
from rlhf_jax.losses.ppo import explained_variance, policy_loss, ppo_value_loss

RNG = np.random.default_rng(0)
MASK = np.array(
    [
        [1, 1, 1, 1, 1],
        [1, 1, 1, 0, 0],
        [1, 0, 1, 0, 1],
        [1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
    ],
    dtype=bool,
)
POLICY = {
    "logprobs": RNG.normal(-2.0, 0.5, MASK.shape).astype(np.float32),
    "old_logprobs": RNG.normal(-2.0, 0.5, MASK.shape).astype(np.float32),
    "advantages": RNG.normal(0.0, 1.0, MASK.shape).astype(np.float32),
    "mask": MASK,
}
VALUE = {
    "values": RNG.normal(0.0, 1.0, MASK.shape).astype(np.float32),
    "old_values": RNG.normal(0.0, 1.0, MASK.shape).astype(np.float32),
    "returns": RNG.normal(0.0, 1.0, MASK.shape).astype(np.float32),
    "mask": MASK,
}
ON_POLICY = POLICY | {"old_logprobs": POLICY["logprobs"]}

INF = float("inf")
ppo = partial(
    policy_loss, objective="ppo", clip_range=0.2, clip_range_high=0.2, dual_clip=INF
)
dual = partial(ppo, dual_clip=1.5)
higher = partial(ppo, clip_range_high=0.5)
gspo = partial(ppo, objective="gspo", clip_range=0.1, clip_range_high=0.15)
cispo = partial(ppo, objective="cispo", clip_range=0.3, clip_range_high=0.4)
value = partial(ppo_value_loss, value_clip_range=0.3)


def slow_ratio(arguments, i, objective):
    log_ratio = np.float64(arguments["logprobs"]) - np.float64(
        arguments["old_logprobs"]
    )
    if objective == "gspo":  # the geometric mean over the response's real tokens
        return np.exp(log_ratio[i[0]][arguments["mask"][i[0]]].mean())
    return np.exp(log_ratio[i])


def slow_ppo(arguments, objective="ppo", low=0.2, high=0.2, dual_clip=np.inf):
    loss, clipped = np.zeros(MASK.shape), np.zeros(MASK.shape, bool)
    for i in zip(*np.nonzero(arguments["mask"]), strict=True):
        advantage = float(arguments["advantages"][i])
        ratio = slow_ratio(arguments, i, objective)
        held = min(max(ratio, 1 - low), 1 + high)
        if objective == "cispo":
            loss[i] = -advantage * held * float(arguments["logprobs"][i])
            clipped[i] = held != ratio
            continue
        gain = min(advantage * ratio, advantage * held)
        clipped[i] = gain < advantage * ratio
        if advantage < 0 and gain < dual_clip * advantage:
            gain, clipped[i] = dual_clip * advantage, True
        loss[i] = -gain
    return loss, clipped


def slow_value(arguments):
    loss, clipped = np.zeros(MASK.shape), np.zeros(MASK.shape, bool)
    for i in zip(*np.nonzero(arguments["mask"]), strict=True):
        v, old, target = (
            float(arguments[k][i]) for k in ("values", "old_values", "returns")
        )
        held = old + min(max(v - old, -0.3), 0.3)
        loss[i] = max((v - target) ** 2, (held - target) ** 2) / 2
        clipped[i] = (held - target) ** 2 > (v - target) ** 2
    return loss, clipped


slow_gspo = partial(slow_ppo, objective="gspo", low=0.1, high=0.15)
slow_cispo = partial(slow_ppo, objective="cispo", low=0.3, high=0.4)
LOSSES = {
    "ppo": (ppo, slow_ppo, POLICY, "logprobs"),
    "dual": (dual, partial(slow_ppo, dual_clip=1.5), POLICY, "logprobs"),
    "higher": (higher, partial(slow_ppo, high=0.5), POLICY, "logprobs"),
    "gspo": (gspo, slow_gspo, POLICY, "logprobs"),
    "cispo": (cispo, slow_cispo, POLICY, "logprobs"),
    "value": (value, slow_value, VALUE, "values"),
}
POLICY_LOSSES = ["ppo", "dual", "higher", "gspo", "cispo"]


def call(loss, arguments):
    return loss(**{name: jnp.array(x) for name, x in arguments.items()})


def gradients(loss, arguments):
    """Gradients of the mean over real tokens, for every float argument."""

    @jax.jit
    @jax.grad
    def mean_loss(floats):
        out = call(loss, arguments | floats)
        return masked.mean(out.loss, jnp.array(arguments["mask"]))

    floats = {name: jnp.array(x) for name, x in arguments.items() if name != "mask"}
    return mean_loss(floats)


def replace_masked(arguments, garbage):
    return {
        name: x if name == "mask" else np.where(MASK, x, garbage).astype(np.float32)
        for name, x in arguments.items()
    }


@pytest.mark.parametrize("name", LOSSES)
def test_loss_equals_the_slow_reference(name):
    loss, slow, arguments, _ = LOSSES[name]
    out, (expected, clipped) = call(loss, arguments), slow(arguments)
    np.testing.assert_allclose(out.loss, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(out.clipped, clipped)
    assert 0 < clipped.sum() < MASK.sum()


@pytest.mark.parametrize("name", ["ppo", "dual", "higher", "value"])
def test_gradient_equals_finite_differences(name):
    loss, slow, arguments, which = LOSSES[name]
    got = gradients(loss, arguments)[which]
    eps = 1e-6
    up, down = dict(arguments), dict(arguments)
    up[which] = arguments[which].astype(np.float64) + eps
    down[which] = arguments[which].astype(np.float64) - eps
    rise = (slow(up)[0] - slow(down)[0]) / (2 * eps) / MASK.sum()
    np.testing.assert_allclose(got, rise, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_targets_get_no_gradient(name):
    loss, _, arguments, which = LOSSES[name]
    for argument, gradient in gradients(loss, arguments).items():
        if argument != which:
            np.testing.assert_array_equal(gradient, 0.0, err_msg=argument)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -1e30])
@pytest.mark.parametrize("name", LOSSES)
def test_masked_garbage_changes_neither_loss_nor_gradient(name, garbage):
    loss, _, arguments, which = LOSSES[name]
    dirty = replace_masked(arguments, garbage)
    for x, y in zip(call(loss, dirty), call(loss, arguments), strict=True):
        np.testing.assert_array_equal(x, y)
    got = gradients(loss, dirty)[which]
    np.testing.assert_allclose(got, gradients(loss, arguments)[which], rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(got)[~MASK], 0.0)


@pytest.mark.parametrize("name", LOSSES)
def test_padding_on_either_side_changes_neither_loss_nor_gradient(name):
    loss, _, arguments, which = LOSSES[name]
    padded = {k: np.pad(x, ((0, 1), (2, 3))) for k, x in arguments.items()}
    inside = (slice(0, 5), slice(2, 7))
    out, short = call(loss, padded), call(loss, arguments)
    np.testing.assert_array_equal(out.loss[inside], short.loss)
    np.testing.assert_allclose(jnp.sum(out.loss), jnp.sum(short.loss), rtol=1e-6)
    np.testing.assert_allclose(
        gradients(loss, padded)[which][inside],
        gradients(loss, arguments)[which],
        rtol=1e-6,
    )


@pytest.mark.parametrize("name", LOSSES)
def test_microbatches_weighted_by_their_tokens_add_up_to_the_batch(name):
    loss, _, arguments, _ = LOSSES[name]
    mask = jnp.array(MASK)
    whole = masked.mean(call(loss, arguments).loss, mask)
    total = count = 0.0
    for rows in (slice(0, 1), slice(1, 4), slice(4, 5)):
        part = call(loss, {k: x[rows] for k, x in arguments.items()})
        total += masked.sum(part.loss, mask[rows])
        count += jnp.sum(mask[rows])
    np.testing.assert_allclose(total / count, whole, rtol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_without_real_tokens_has_loss_and_gradient_zero(name):
    loss, _, arguments, which = LOSSES[name]
    empty = arguments | {"mask": np.zeros_like(MASK)}
    np.testing.assert_array_equal(call(loss, empty).loss, 0.0)
    np.testing.assert_array_equal(gradients(loss, empty)[which], 0.0)


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_gradient_at_ratio_one_is_the_policy_gradient(name):
    loss = LOSSES[name][0]
    got = gradients(loss, ON_POLICY)["logprobs"]
    expected = np.where(MASK, -POLICY["advantages"], 0) / MASK.sum()
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_on_policy_the_ratio_is_one_and_nothing_is_clipped(name):
    out = call(LOSSES[name][0], ON_POLICY)
    np.testing.assert_array_equal(out.ratio, 1.0)
    np.testing.assert_array_equal(out.approxkl, 0.0)
    assert not np.asarray(out.clipped).any()


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_metrics_compare_with_the_old_policy(name):
    out = call(LOSSES[name][0], POLICY)
    log_ratio = np.where(MASK, POLICY["logprobs"] - POLICY["old_logprobs"], 0)
    expected = np.exp(log_ratio)
    if name == "gspo":
        for i in zip(*np.nonzero(MASK), strict=True):
            expected[i] = slow_ratio(POLICY, i, "gspo")
    np.testing.assert_allclose(out.ratio, expected, rtol=1e-5)
    np.testing.assert_allclose(out.approxkl, log_ratio**2 / 2, rtol=1e-4, atol=1e-7)


def test_ppo_of_hand_written_numbers():
    # clip 0.2, ratios 1.5, 1.5, 0.5, 0.5, 1.1 with advantages 2, -2, 2, -2, 2:
    # -min(3, 2.4) = -2.4 (held); -min(-3, -2.4) = 3; -min(1, 1.6) = -1;
    # -min(-1, -1.6) = 1.6 (held); -min(2.2, 2.2) = -2.2.
    ratio = np.array([1.5, 1.5, 0.5, 0.5, 1.1], np.float32)
    arguments = {
        "logprobs": np.log(ratio) - 1,
        "old_logprobs": np.full(5, -1.0, np.float32),
        "advantages": np.array([2, -2, 2, -2, 2], np.float32),
        "mask": np.ones(5, bool),
    }
    out = call(ppo, arguments)
    np.testing.assert_allclose(out.loss, [-2.4, 3.0, -1.0, 1.6, -2.2], rtol=1e-5)
    np.testing.assert_array_equal(out.clipped, [True, False, False, True, False])
    # Held tokens get nothing; the others -A ratio / 5.
    np.testing.assert_allclose(
        gradients(ppo, arguments)["logprobs"], [0, 0.6, -0.2, 0, -0.44], rtol=1e-5
    )
    # Dual clip 1.25: only the second is above 1.25 x 2 = 2.5.
    bounded = call(partial(dual, dual_clip=1.25), arguments)
    np.testing.assert_allclose(bounded.loss, [-2.4, 2.5, -1.0, 1.6, -2.2], rtol=1e-5)
    np.testing.assert_array_equal(bounded.clipped, [True, True, False, True, False])


def test_gradient_is_zero_exactly_where_a_token_is_clipped():
    for loss in (ppo, dual, higher, gspo):
        clipped = np.asarray(call(loss, POLICY).clipped)
        gradient = np.asarray(gradients(loss, POLICY)["logprobs"])
        np.testing.assert_array_equal(gradient == 0, clipped | ~MASK)


def test_an_infinite_clip_range_is_importance_sampling_alone():
    out = call(partial(ppo, clip_range=INF, clip_range_high=INF), POLICY)
    np.testing.assert_allclose(
        out.loss, -out.ratio * np.where(MASK, POLICY["advantages"], 0), rtol=1e-6
    )
    assert not np.asarray(out.clipped).any()


def test_clip_higher_moves_the_upper_end_alone():
    # ratios 1.3, 1.6, 0.7, 1.6 with advantages 1, 1, -1, -1; ends 0.8 and 1.5:
    # 1.3 is free now; 1.6 is held at 1.5; 0.7 is held at 0.8 as before; 1.6 is free.
    arguments = {
        "logprobs": np.log(np.array([1.3, 1.6, 0.7, 1.6], np.float32)),
        "old_logprobs": np.zeros(4, np.float32),
        "advantages": np.array([1, 1, -1, -1], np.float32),
        "mask": np.ones(4, bool),
    }
    out = call(higher, arguments)
    np.testing.assert_allclose(out.loss, [-1.3, -1.5, 0.8, 1.6], rtol=1e-6)
    np.testing.assert_array_equal(out.clipped, [False, True, True, False])


def rows_of_one_token(arguments):
    return {name: x.reshape(-1, 1) for name, x in arguments.items()}


def test_gspo_of_responses_of_one_token_is_ppo():
    arguments = rows_of_one_token(POLICY)
    found = call(partial(ppo, objective="gspo"), arguments)
    for x, y in zip(found, call(ppo, arguments), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(
        gradients(partial(ppo, objective="gspo"), arguments)["logprobs"],
        gradients(ppo, arguments)["logprobs"],
        rtol=1e-5,
    )


def test_gspo_of_hand_written_numbers():
    # Log-ratios 0.3 and 0.1: the response's ratio is exp(0.2) = 1.221403, above 1.15,
    # so advantages of 1 are held at 1.15 and advantages of -1 are free. The second
    # response, -0.1 and masked, has ratio exp(-0.1) = 0.904837, inside.
    arguments = {
        "logprobs": np.array([[0.3, 0.1], [-0.1, 9.0]], np.float32) - 2,
        "old_logprobs": np.array([[-2, -2], [-2, 3.0]], np.float32),
        "advantages": np.array([[1, -1], [1, 1]], np.float32),
        "mask": np.array([[True, True], [True, False]]),
    }
    out = call(gspo, arguments)
    np.testing.assert_allclose(
        out.loss, [[-1.15, 1.221403], [-0.904837, 0.0]], rtol=1e-5
    )
    np.testing.assert_array_equal(out.clipped, [[True, False], [False, False]])
    # d loss / d logprob = -A ratio of the response where it is free.
    np.testing.assert_allclose(
        3 * gradients(gspo, arguments)["logprobs"],
        [[0.0, 1.221403], [-0.904837, 0.0]],
        rtol=1e-5,
    )


def test_the_gradient_of_gspo_is_that_of_the_ratio_of_responses():
    """With one advantage a response, and the mean of GRPO's paper: finite differences
    of -min(s A, clip(s) A), s = (pi / pi_old)^(1 / length)."""
    arguments = POLICY | {"advantages": np.repeat(POLICY["advantages"][:, :1], 5, 1)}

    def mean_loss(logprobs):
        out = call(gspo, arguments | {"logprobs": logprobs})
        return aggregate(
            out.loss, jnp.array(MASK), aggregation="response", length=5
        ).total

    got = jax.grad(mean_loss)(jnp.array(POLICY["logprobs"]))

    def slow(logprobs):
        loss, _ = slow_gspo(arguments | {"logprobs": logprobs})
        rows = zip(loss, MASK, strict=True)
        return sum(row[mask].mean() for row, mask in rows if mask.any())

    for i in np.ndindex(MASK.shape):
        step = np.zeros(MASK.shape)
        step[i] = 1e-6
        logprobs = POLICY["logprobs"].astype(np.float64)
        rise = (slow(logprobs + step) - slow(logprobs - step)) / 2e-6
        np.testing.assert_allclose(got[i], rise, rtol=1e-4, atol=1e-6)


def test_the_gradient_of_cispo_is_the_policy_gradient_times_the_held_ratio():
    got = gradients(cispo, POLICY)["logprobs"]
    held = np.clip(np.exp(POLICY["logprobs"] - POLICY["old_logprobs"]), 0.7, 1.4)
    expected = np.where(MASK, -POLICY["advantages"] * held, 0) / MASK.sum()
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    # A held token still learns: that is the point of CISPO.
    clipped = np.asarray(call(cispo, POLICY).clipped)
    assert clipped.any()
    assert (np.asarray(got)[clipped] != 0).all()


def test_cispo_inside_the_range_has_the_gradient_of_ppo():
    wide = {"clip_range": 1.0, "clip_range_high": INF}
    np.testing.assert_allclose(
        gradients(partial(cispo, **wide), POLICY)["logprobs"],
        gradients(partial(ppo, **wide), POLICY)["logprobs"],
        rtol=1e-5,
    )


def test_an_unknown_objective_is_refused():
    with pytest.raises(ValueError, match="objective='trpo' must be one of ppo, gspo"):
        call(partial(ppo, objective="trpo"), POLICY)


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_a_policy_far_from_the_old_one_gives_finite_loss_and_gradient(name):
    """A ratio of inf made the gradient of a clipped token 0 * inf = nan."""
    far = POLICY | {
        "logprobs": POLICY["logprobs"] + 1000 * np.sign(POLICY["advantages"])
    }
    for sign in (1, -1):
        arguments = far | {"advantages": sign * POLICY["advantages"]}
        assert np.isfinite(call(LOSSES[name][0], arguments).loss).all()
        assert np.isfinite(gradients(LOSSES[name][0], arguments)["logprobs"]).all()


def test_a_step_down_the_gradient_makes_good_tokens_likelier():
    for name in POLICY_LOSSES:
        gradient = np.asarray(gradients(LOSSES[name][0], ON_POLICY)["logprobs"])
        assert (-gradient * POLICY["advantages"])[MASK].min() > 0


def test_policy_gradient_finds_the_best_arm_of_a_bandit():
    """Three arms, the second pays: fails when any sign on the way is wrong."""
    pays = jnp.array([0.0, 1.0, -0.5])

    @jax.jit
    def update(logits):
        old = jax.nn.log_softmax(logits)
        advantages = pays - jnp.sum(jnp.exp(old) * pays)

        def loss(logits):
            out = ppo(
                logprobs=jax.nn.log_softmax(logits),
                old_logprobs=old,
                advantages=advantages,
                mask=jnp.ones(3, bool),
            )
            return jnp.sum(jnp.exp(old) * out.loss)  # the expectation over arms

        return logits - jax.grad(loss)(logits)

    logits = jnp.zeros(3)
    for _ in range(50):
        logits = update(logits)
    assert jax.nn.softmax(logits)[1] > 0.9


def test_value_loss_of_hand_written_numbers():
    # range 0.3, old value 0, return 1. Value 0.2: inside, (0.8)^2 / 2 = 0.32. Value
    # 0.9: held at 0.3, (0.7)^2 / 2 = 0.245 > 0.005. Value -0.5: held at -0.3, but
    # (1.5)^2 / 2 = 1.125 is the larger.
    arguments = {
        "values": np.array([0.2, 0.9, -0.5], np.float32),
        "old_values": np.zeros(3, np.float32),
        "returns": np.ones(3, np.float32),
        "mask": np.ones(3, bool),
    }
    out = call(value, arguments)
    np.testing.assert_allclose(out.loss, [0.32, 0.245, 1.125], rtol=1e-5)
    np.testing.assert_array_equal(out.clipped, [False, True, False])
    np.testing.assert_allclose(
        gradients(value, arguments)["values"], [-0.8 / 3, 0, -1.5 / 3], rtol=1e-5
    )


def test_an_infinite_value_range_is_half_the_squared_error():
    out = call(partial(ppo_value_loss, value_clip_range=float("inf")), VALUE)
    expected = np.where(MASK, (VALUE["values"] - VALUE["returns"]) ** 2 / 2, 0)
    np.testing.assert_allclose(out.loss, expected, rtol=1e-4, atol=1e-7)


def test_explained_variance_is_one_when_exact_and_zero_for_a_constant():
    returns, mask = jnp.array(VALUE["returns"]), jnp.array(MASK)
    exact = explained_variance(values=returns, returns=returns, mask=mask)
    shifted = explained_variance(values=returns + 5, returns=returns, mask=mask)
    constant = explained_variance(
        values=jnp.full(MASK.shape, 3.0), returns=returns, mask=mask
    )
    opposite = explained_variance(values=-returns, returns=returns, mask=mask)
    np.testing.assert_allclose([exact, shifted, constant], [1, 1, 0], atol=1e-5)
    np.testing.assert_allclose(opposite, -3.0, rtol=1e-5)  # 1 - var(2 G) / var(G)


def test_explained_variance_counts_real_tokens_only():
    dirty = replace_masked(VALUE, np.nan)
    kept_values = VALUE["values"][MASK].astype(np.float64)
    kept_returns = VALUE["returns"][MASK].astype(np.float64)
    got = explained_variance(
        values=jnp.array(dirty["values"]),
        returns=jnp.array(dirty["returns"]),
        mask=jnp.array(MASK),
    )
    expected = 1 - np.var(kept_returns - kept_values) / np.var(kept_returns)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_explained_variance_of_equal_or_no_returns_is_zero():
    values, mask = jnp.array(VALUE["values"]), jnp.array(MASK)
    ones = jnp.ones(MASK.shape)
    assert explained_variance(values=values, returns=ones, mask=mask) == 0
    assert explained_variance(values=values, returns=ones, mask=mask & False) == 0


@pytest.mark.parametrize("name", LOSSES)
def test_loss_is_float32_whatever_comes_in(name):
    loss, _, arguments, _ = LOSSES[name]
    half = {
        k: x if k == "mask" else jnp.array(x, jnp.bfloat16)
        for k, x in arguments.items()
    }
    assert call(loss, half).loss.dtype == jnp.float32
