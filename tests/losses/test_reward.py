import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.losses.reward import ranking_loss

RNG = np.random.default_rng(0)
CHOSEN = RNG.normal(1.0, 2.0, 6).astype(np.float32)
REJECTED = RNG.normal(0.0, 2.0, 6).astype(np.float32)
SETTINGS = {"margin": 0.3, "label_smoothing": 0.1, "score_regularisation": 0.05}
PAPER = {"margin": 0.0, "label_smoothing": 0.0, "score_regularisation": 0.0}


@jax.jit
def pairs(chosen, rejected, **settings):
    return ranking_loss(chosen_scores=chosen, rejected_scores=rejected, **settings)


def slow_loss(chosen, rejected, *, margin, label_smoothing, score_regularisation):
    """One pair, in float64."""
    chosen, rejected = float(chosen), float(rejected)
    right = 1 / (1 + np.exp(-(chosen - rejected - margin)))
    ranking = -(1 - label_smoothing) * np.log(right)
    ranking -= label_smoothing * np.log(1 - right)
    return ranking + score_regularisation * (chosen**2 + rejected**2)


def test_loss_equals_the_slow_reference():
    expected = [
        slow_loss(c, r, **SETTINGS) for c, r in zip(CHOSEN, REJECTED, strict=True)
    ]
    out = pairs(CHOSEN, REJECTED, **SETTINGS)
    np.testing.assert_allclose(out.loss, expected, rtol=1e-5)
    np.testing.assert_allclose(out.margin, CHOSEN - REJECTED)


def test_loss_is_log_two_at_equal_scores():
    np.testing.assert_allclose(
        pairs(CHOSEN, CHOSEN, **PAPER).loss, np.log(2), rtol=1e-6
    )


def test_loss_of_hand_written_numbers():
    # Scores 2 and 1, margin 1/2: d = 1/2; log sigmoid(1/2) = -0.474077 and
    # log sigmoid(-1/2) = -0.974077. Smoothing 1/4: 3/4 0.474077 + 1/4 0.974077 =
    # 0.599077. Squares 4 + 1 = 5, times 0.01: 0.05.
    out = pairs(
        jnp.array([2.0]),
        jnp.array([1.0]),
        margin=0.5,
        label_smoothing=0.25,
        score_regularisation=0.01,
    )
    np.testing.assert_allclose(out.ranking, [0.599077], rtol=1e-5)
    np.testing.assert_allclose(out.regulariser, [5.0])
    np.testing.assert_allclose(out.loss, [0.649077], rtol=1e-5)
    np.testing.assert_allclose(out.margin, [1.0])


def test_ranking_ignores_a_shift_of_a_pairs_scores_and_the_regulariser_does_not():
    """Neither its value nor its gradient sees what depends on the prompt alone."""
    shift = jnp.linspace(-3.0, 4.0, 6)
    given, moved = (CHOSEN, REJECTED), (CHOSEN + shift, REJECTED + shift)
    out, shifted = (pairs(*scores, **PAPER) for scores in (given, moved))
    np.testing.assert_allclose(shifted.ranking, out.ranking, rtol=1e-5)
    assert (np.abs(shifted.regulariser - out.regulariser) > 1).any()
    total = jax.grad(lambda c, r: pairs(c, r, **PAPER).loss.sum(), (0, 1))
    one, other = (total(*map(jnp.asarray, scores)) for scores in (given, moved))
    np.testing.assert_allclose(one, other, rtol=1e-5)


def test_each_pair_may_have_its_own_margin():
    margins = jnp.linspace(0.0, 2.0, 6)
    settings = {"label_smoothing": 0.0, "score_regularisation": 0.0}
    together = pairs(CHOSEN, REJECTED, margin=margins, **settings)
    for i in range(6):
        alone = pairs(
            CHOSEN[i : i + 1], REJECTED[i : i + 1], margin=margins[i], **settings
        )
        np.testing.assert_allclose(together.loss[i], alone.loss[0], rtol=1e-6)


def test_gradient_raises_the_chosen_and_equals_the_closed_form():
    def total(chosen, rejected):
        return jnp.sum(pairs(chosen, rejected, **PAPER).loss)

    d_chosen, d_rejected = jax.grad(total, (0, 1))(
        jnp.array(CHOSEN), jnp.array(REJECTED)
    )
    expected = -1 / (1 + np.exp(CHOSEN - REJECTED))
    np.testing.assert_allclose(d_chosen, expected, rtol=1e-5)
    np.testing.assert_allclose(d_rejected, -expected, rtol=1e-5)


def test_gradient_equals_finite_differences():
    gradient = jax.grad(lambda c: jnp.sum(pairs(c, REJECTED, **SETTINGS).loss))(
        jnp.array(CHOSEN)
    )
    eps = 1e-6
    for i in range(6):
        chosen = float(CHOSEN[i])
        rise = slow_loss(chosen + eps, REJECTED[i], **SETTINGS)
        rise -= slow_loss(chosen - eps, REJECTED[i], **SETTINGS)
        np.testing.assert_allclose(gradient[i], rise / (2 * eps), rtol=1e-4)


def test_scores_of_ten_thousand_give_exact_losses_and_finite_gradients():
    # A pair ranked right costs 0, one ranked wrong costs the difference, 2e4.
    chosen, rejected = jnp.array([1e4, -1e4]), jnp.array([-1e4, 1e4])
    np.testing.assert_allclose(pairs(chosen, rejected, **PAPER).loss, [0.0, 2e4])
    for settings in (PAPER, SETTINGS):
        gradient = jax.grad(lambda c, s=settings: jnp.sum(pairs(c, rejected, **s).loss))
        assert np.isfinite(gradient(chosen)).all()
        assert np.isfinite(pairs(chosen, rejected, **settings).loss).all()
    np.testing.assert_allclose(
        jax.grad(lambda c: jnp.sum(pairs(c, rejected, **PAPER).loss))(chosen),
        [0.0, -1.0],
    )


def test_scores_in_bfloat16_are_compared_in_float32():
    out = ranking_loss(
        chosen_scores=jnp.array([256.0], jnp.bfloat16),
        rejected_scores=jnp.array([-17.0], jnp.bfloat16),
        **PAPER,
    )
    assert out.margin.dtype == jnp.float32
    # Neither 273 nor 17^2 = 289 exists in bfloat16.
    np.testing.assert_array_equal(out.margin, [273.0])
    np.testing.assert_array_equal(out.regulariser, [65536.0 + 289.0])
