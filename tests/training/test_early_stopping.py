import jax.numpy as jnp
import numpy as np

from rlhf_jax.training.early_stopping import Best


def weights(x):
    return {"kernel": jnp.full(3, x)}


def test_the_best_model_is_kept_and_the_wait_counted():
    best = Best.start(weights(0.0))
    waits = []
    for x, score in ((1.0, 0.5), (2.0, 0.7), (3.0, 0.6), (4.0, 0.7)):
        best = best.update(weights(x), score)
        waits.append(int(best.waited))
    assert waits == [0, 0, 1, 2]  # an equal score is no better
    np.testing.assert_array_equal(best.model["kernel"], 2.0)
    np.testing.assert_allclose(best.score, 0.7)


def test_patience_ends_after_so_many_evaluations_and_zero_never():
    best = Best.start(weights(0.0)).update(weights(1.0), 0.5)
    assert not best.is_final(1)
    best = best.update(weights(2.0), 0.5)
    assert best.is_final(1) and not best.is_final(2) and not best.is_final(0)


def test_the_best_model_survives_the_donation_of_the_trained_one():
    model = weights(1.0)
    best = Best.start(weights(0.0)).update(model, 0.5)
    model["kernel"].delete()  # what a donated buffer becomes
    np.testing.assert_array_equal(best.model["kernel"], 1.0)
