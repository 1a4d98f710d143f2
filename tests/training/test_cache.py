"""Arrays kept on disk belong to what they were made from."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.presets import preset
from rlhf_jax.training.cache import cached, fingerprint, weights_fingerprint

SOURCE = {"model": "a", "prompts": "b"}


def refuse():
    raise AssertionError("It was computed again.")


@functools.cache
def micro() -> ChatGLM:
    return jax.jit(lambda: ChatGLM(preset("micro"), rngs=nnx.Rngs(0)))()


def test_an_array_is_computed_once(tmp_path):
    path = tmp_path / "folder" / "kept.npz"
    values = np.arange(6, dtype=np.float32).reshape(3, 2)
    np.testing.assert_array_equal(cached(path, SOURCE, lambda: values), values)
    np.testing.assert_array_equal(cached(path, SOURCE, refuse), values)
    assert [p.name for p in path.parent.iterdir()] == ["kept.npz"]


@pytest.mark.parametrize("name", SOURCE)
def test_an_array_made_from_something_else_is_refused(name, tmp_path):
    path = tmp_path / "kept.npz"
    cached(path, SOURCE, lambda: np.zeros(2))
    with pytest.raises(ValueError, match=rf"kept.npz .* another {name}\. Delete it"):
        cached(path, SOURCE | {name: "c"}, refuse)


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 cut"])
def test_a_broken_file_is_refused(content, tmp_path):
    path = tmp_path / "kept.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"kept.npz cannot be read .* delete it"):
        cached(path, SOURCE, refuse)


def test_a_file_of_another_kind_is_refused(tmp_path):
    np.savez(tmp_path / "kept.npz", scores=np.zeros(2))
    with pytest.raises(ValueError, match="cannot be read"):
        cached(tmp_path / "kept.npz", SOURCE, refuse)


def test_equal_weights_have_one_fingerprint():
    copy = jax.tree.map(jnp.copy, micro())
    assert weights_fingerprint(micro()) == weights_fingerprint(copy)


def test_the_smallest_change_of_one_weight_is_another_fingerprint():
    def nudge(x):
        return x.at[(0,) * x.ndim].set(jnp.nextafter(x[(0,) * x.ndim], jnp.inf))

    leaves, treedef = jax.tree.flatten(micro())
    found = {weights_fingerprint(micro())}
    for i in range(len(leaves)):
        changed = [nudge(x) if i == j else x for j, x in enumerate(leaves)]
        found.add(weights_fingerprint(jax.tree.unflatten(treedef, changed)))
    assert len(found) == len(leaves) + 1


def test_exchanged_weights_are_another_fingerprint():
    def flip(x):
        return x[::-1]

    flipped = jax.tree.map(flip, micro())
    assert weights_fingerprint(micro()) != weights_fingerprint(flipped)


def test_weights_of_half_precision_have_a_fingerprint():
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), micro())
    assert weights_fingerprint(half) != weights_fingerprint(micro())


def test_data_in_another_order_is_another_fingerprint():
    assert fingerprint([[1, 2], [3]]) != fingerprint([[3], [1, 2]])
    assert fingerprint([[1, 2], [3]]) != fingerprint([[1], [2, 3]])
