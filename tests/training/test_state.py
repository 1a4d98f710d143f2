"""Results that a training run may hand on."""

import jax.numpy as jnp
import pytest

from rlhf_jax.training.metrics import NonFiniteError
from rlhf_jax.training.state import TrainState, check_learned


def state(step: int, skipped: int) -> TrainState:
    return TrainState(jnp.int32(step), jnp.int32(skipped), None, {})


def test_a_run_whose_every_update_was_skipped_is_no_success():
    with pytest.raises(NonFiniteError, match=r"None of 3 updates was applied.*Lower"):
        check_learned(state(3, 0), state(3, 3))


@pytest.mark.parametrize(("step", "skipped"), [(3, 2), (3, 0), (0, 0)])
def test_a_run_with_an_update_is_one(step, skipped):
    check_learned(state(step, skipped))
