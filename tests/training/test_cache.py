"""Arrays kept on disk belong to what they were made from."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.presets import preset
from rlhf_jax.training import cache
from rlhf_jax.training.cache import (
    OnDemand,
    cached,
    fingerprint,
    weights_fingerprint,
)

SOURCE = {"model": "a", "prompts": "b"}


def refuse():
    raise AssertionError("It was computed again.")


@functools.cache
def micro() -> ChatGLM:
    return jax.jit(lambda: ChatGLM(preset("micro"), rngs=nnx.Rngs(0)))()


def test_an_array_is_computed_once(tmp_path):
    path = tmp_path / "folder" / "kept.npz"
    values = np.arange(6, dtype=np.float32).reshape(3, 2)
    found = cached(path, SOURCE, lambda: values, shape=(3, 2))
    np.testing.assert_array_equal(found, values)
    found = cached(path, SOURCE, refuse, shape=(3, 2))
    np.testing.assert_array_equal(found, values)
    assert [p.name for p in path.parent.iterdir()] == ["kept.npz"]


@pytest.mark.parametrize("name", SOURCE)
def test_an_array_made_from_something_else_is_refused(name, tmp_path):
    path = tmp_path / "kept.npz"
    cached(path, SOURCE, lambda: np.zeros(2, np.float32), shape=(2,))
    with pytest.raises(ValueError, match=rf"kept.npz .* another {name}\. Delete it"):
        cached(path, SOURCE | {name: "c"}, refuse, shape=(3,))


def kept(values, made_from=None, **changes) -> dict:
    """The arrays of a file with these values."""
    made_from = SOURCE if made_from is None else made_from
    record = {"made_from": made_from, "sha256": cache._sum(values)} | changes
    return {"values": values, "record": np.array(json.dumps(record))}


GOOD = np.arange(6, dtype=np.float32).reshape(3, 2)
DAMAGED = {
    "empty": b"",
    "no zip": b"no zip",
    "cut": b"PK\x03\x04 cut",
    "other arrays": {"scores": GOOD},
    "no JSON": {"values": GOOD, "record": np.array("{")},
    "no object": {"values": GOOD, "record": np.array("5")},
    "other values": kept(GOOD) | {"values": GOOD + 1},
    "three values": kept(GOOD[0]),
    "one column": kept(GOOD[:, :1]),
    "other type": kept(GOOD.astype(np.float64)),
    "text": kept(GOOD.astype(str)),
    "infinite": kept(GOOD + np.inf),
    "not a number": kept(GOOD * np.nan),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_set_aside_and_computed_anew(name, tmp_path, caplog):
    path, content = tmp_path / "kept.npz", DAMAGED[name]
    if isinstance(content, dict):
        np.savez(path, **content)
        content = path.read_bytes()
    path.write_bytes(content)
    found = cached(path, SOURCE, lambda: GOOD, shape=GOOD.shape)
    np.testing.assert_array_equal(found, GOOD)
    (line,) = (r.getMessage() for r in caplog.records)
    assert "kept.npz" in line and "computed anew" in line
    assert (tmp_path / "kept.npz.damaged").read_bytes() == content
    np.testing.assert_array_equal(cached(path, SOURCE, refuse, shape=(3, 2)), GOOD)


@pytest.mark.parametrize("place", range(0, 700, 50))
def test_a_flipped_bit_is_seen(place, tmp_path):
    path = tmp_path / "kept.npz"
    cached(path, SOURCE, lambda: GOOD, shape=GOOD.shape)
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)
    found = cached(path, SOURCE, lambda: GOOD, shape=GOOD.shape)
    np.testing.assert_array_equal(found, GOOD)


def test_of_elements_kept_on_demand_infinite_ones_are_damage(tmp_path, caplog):
    values = np.array([1.0, np.nan, np.inf], np.float32)
    np.savez(tmp_path / "kept.npz", **kept(values))
    assert cache.read(tmp_path / "kept.npz", SOURCE, (3,), holes=True) is None
    assert "computed anew" in caplog.text


class Squares:
    """The squares of places, and which were asked for; `bad` ones are NaN."""

    def __init__(self, path, bad=()):
        self.calls, self.bad = [], set(bad)
        self.array = OnDemand(path, SOURCE, self.compute, size=10, batch_size=4)

    def compute(self, index):
        self.calls.append(index.tolist())
        values = np.square(index).astype(np.float32)
        return np.where(np.isin(index, list(self.bad)), np.nan, values)

    def at(self, *index):
        return self.array.at(np.array(index)).tolist()


def test_elements_are_computed_when_they_are_first_asked_for(tmp_path):
    """A batch that is not full takes others along: ten elements, three batches."""
    squares = Squares(tmp_path / "kept.npz")
    assert not squares.calls
    assert squares.at(7, 2, 9, 4) == [49, 4, 81, 16]
    assert squares.at(2, 7) == [4, 49]
    assert squares.calls == [[7, 2, 9, 4]]
    assert squares.at(9, 5, 4) == [81, 25, 16]
    assert squares.calls[1:] == [[5, 0, 1, 3]]
    assert squares.at(8, 6) == [64, 36]
    assert squares.calls[2:] == [[8, 6, 8, 6]]
    assert squares.at(*range(10)) == [i * i for i in range(10)]
    assert len(squares.calls) == 3


def test_elements_are_kept_for_the_next_run(tmp_path):
    path = tmp_path / "kept.npz"
    Squares(path).at(3, 1)
    again = Squares(path)
    assert again.at(1, 3) == [1, 9]
    assert not again.calls
    with pytest.raises(ValueError, match="another model"):
        OnDemand(path, SOURCE | {"model": "c"}, refuse, size=10, batch_size=4)


def test_more_elements_than_a_batch_has_at_once(tmp_path):
    squares = Squares(tmp_path / "kept.npz")
    assert squares.at(*range(10)) == [i * i for i in range(10)]
    assert squares.calls == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 8, 9]]


def test_what_is_no_number_is_computed_again(tmp_path):
    squares = Squares(tmp_path / "kept.npz", bad=[2])
    np.testing.assert_array_equal(squares.at(2, 3), [np.nan, 9])
    squares.bad.clear()
    assert squares.at(2, 3) == [4, 9]


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


@pytest.mark.parametrize(
    "field", [{"attention": "splash"}, {"remat": "full"}, {"scan_layers": True}]
)
def test_how_a_model_computes_does_not_change_its_fingerprint(field):
    graph, state = nnx.split(micro())
    other = nnx.merge(graph, state)
    other.config = dataclasses.replace(micro().config, **field)
    assert weights_fingerprint(other) == weights_fingerprint(micro())


@pytest.mark.parametrize(
    "field", [{"rotary_base": 5.0}, {"dtype": "bfloat16"}, {"norm_eps": 1e-6}]
)
def test_what_a_model_computes_does(field):
    graph, state = nnx.split(micro())
    other = nnx.merge(graph, state)
    other.config = dataclasses.replace(micro().config, **field)
    assert weights_fingerprint(other) != weights_fingerprint(micro())


def test_data_in_another_order_is_another_fingerprint():
    assert fingerprint([[1, 2], [3]]) != fingerprint([[3], [1, 2]])
    assert fingerprint([[1, 2], [3]]) != fingerprint([[1], [2, 3]])
