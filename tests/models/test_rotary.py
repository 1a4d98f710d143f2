"""Rotary positions against complex numbers in a plain loop."""

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models.rotary import rotate, rotation

HEAD = 8


def turn(x, positions, **settings):
    settings = {
        "layout": "interleaved",
        "head_dim": HEAD,
        "rotary_dims": HEAD // 2,
        "base": 100.0,
        "position_divisor": 1.0,
    } | settings
    cos_sin = rotation(jnp.asarray(positions), **settings)
    return np.asarray(rotate(jnp.asarray(x), cos_sin, layout=settings["layout"]))


@pytest.fixture
def x():
    shape = (1, 3, 2, HEAD)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("dims", [4, 8])
def test_neighbours_of_the_first_dims_turn_and_the_rest_pass(x, dims):
    positions = [0, 5, 9]
    expected = x.copy()
    for t, p in enumerate(positions):
        for i in range(0, dims, 2):
            z = x[0, t, :, i] + 1j * x[0, t, :, i + 1]
            z = z * np.exp(1j * p * 100.0 ** (-i / dims))
            expected[0, t, :, i], expected[0, t, :, i + 1] = z.real, z.imag
    found = turn(x, np.array(positions).reshape(1, 3, 1), rotary_dims=dims)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_each_half_of_chatglm_6b_turns_by_its_own_position(x):
    positions = np.array([[[0, 0], [3, 1], [3, 2]]])
    expected = x.copy()
    for t in range(3):
        for axis in range(2):
            for i in range(2):
                first = 4 * axis + i
                # The published code keeps the frequencies in float16.
                frequency = float(np.float16(100.0 ** (-2 * i / 4)))
                z = x[0, t, :, first] + 1j * x[0, t, :, first + 2]
                z = z * np.exp(1j * positions[0, t, axis] * frequency)
                expected[0, t, :, first] = z.real
                expected[0, t, :, first + 2] = z.imag
    found = turn(x, positions, layout="two_axes")
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_dividing_positions_equals_smaller_positions(x):
    positions = np.array([0, 50, 150]).reshape(1, 3, 1)
    found = turn(x, positions, position_divisor=50.0)
    np.testing.assert_allclose(found, turn(x, positions // 50), atol=1e-6)


def test_scores_depend_on_distance_alone(x):
    near = np.array([1, 4, 6]).reshape(1, 3, 1)

    def scores(positions):
        y = turn(x, positions)
        return np.einsum("btnh,bsnh->bnts", y, y)

    np.testing.assert_allclose(scores(near), scores(near + 20), atol=1e-5)
