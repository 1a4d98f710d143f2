"""The cache is written in place, and its rows and slots can be replaced."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models import kv_cache
from tests.models.families import FAMILIES, random_model, random_tokens


def test_a_decode_loop_copies_no_cache():
    """Copying it in each step would cost more than the step."""
    batch, slots = 3, 40

    @jax.jit
    def loop(model, tokens):
        mask = jnp.ones(tokens.shape, bool)
        hidden, cache, _ = model.decode(tokens, mask, model.init_cache(batch, slots))

        def step(carry):
            token, cache = carry
            hidden, cache, _ = model.decode(token, mask[:, :1], cache)
            return (hidden @ model.output_matrix).argmax(-1), cache

        start = (hidden[:, -1:] @ model.output_matrix).argmax(-1), cache
        return jax.lax.while_loop(lambda c: c[1].index < slots, step, start)[0]

    # The CPU's compiler that users get, not the quick one of these tests.
    jax.config.update("jax_disable_most_optimizations", False)
    with jax.default_device(jax.devices("cpu")[0]):
        model = random_model(FAMILIES["v2"])
        program = loop.lower(model, random_tokens(model.config, (batch, 4))).compile()
    text = program.as_text()
    layer = rf"f32\[{batch},2,(16,{slots}|{slots},16)\]"
    assert re.search(layer, text), "The cache's shape has changed: adapt the test."
    body = re.search(r"while\(.*body=%?([\w.\-]+)", text).group(1)
    start = re.search(rf"^%?{re.escape(body)} ", text, re.MULTILINE).start()
    lines = text[start : text.index("\n}", start)].splitlines()
    copies = [line for line in lines if re.search(rf"= {layer}\S* copy\(", line)]
    assert not copies, "\n".join(copies)


def test_the_shape_of_a_cache_is_known_without_memory():
    model = random_model(FAMILIES["v2"])
    cache = jax.eval_shape(lambda: model.init_cache(2, 10))
    assert cache.mask.shape == (2, 10)
    assert cache.length == 10


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("slots", [None, [5, 0]])
def test_rows_are_read_anew_in_all_slots_or_in_some(stacked, slots):
    """Rows 2 and 0 are replaced; there is no row 3, so what it has read is left out."""
    old = filled(6, stacked)
    new = filled(6 if slots is None else len(slots), stacked, seed=1)
    rows, at = jnp.array([2, 0, 3]), slots or list(range(6))
    where = None if slots is None else jnp.array(slots)
    now = kv_cache.replace_rows(old, rows, new, where)
    was, read, is_now = map(by_slot, (old, new, now))
    np.testing.assert_array_equal(is_now[:, 1], was[:, 1])
    for row, other in ((2, 0), (0, 1)):
        np.testing.assert_array_equal(is_now[:, row][..., at], read[:, other])
        mask = np.zeros(6, bool)
        mask[at] = new.mask[other]
        assert now.mask[row].tolist() == mask.tolist()
        assert now.context[row] == new.context[other]
        assert now.mask_place[row] == new.mask_place[other]
    for name in ("mask", "context", "mask_place"):
        assert jnp.array_equal(getattr(now, name)[1], getattr(old, name)[1])


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("slots", [3, 6, 9])
def test_a_ring_of_another_size_keeps_its_newest_tokens(stacked, slots):
    """Slot 1 is written next, so slot 0 is the newest and slot 1 the oldest."""
    old = filled(6, stacked)._replace(index=jnp.int32(13))
    now = kv_cache.resize_ring(old, slots)
    kept = min(slots, 6)
    newest = [1, 2, 3, 4, 5, 0][6 - kept :]
    was, is_now = map(by_slot, (old, now))
    np.testing.assert_array_equal(is_now[..., :kept], was[..., newest])
    np.testing.assert_array_equal(now.mask[:, :kept], old.mask[:, newest])
    assert not now.mask[:, kept:].any()
    assert now.index == kept


@pytest.mark.parametrize("stacked", [False, True])
def test_rows_are_taken_in_any_order(stacked):
    old = filled(4, stacked)
    now = kv_cache.take_rows(old, jnp.array([2, 0, 0, 1]))
    np.testing.assert_array_equal(by_slot(now), by_slot(old)[:, [2, 0, 0, 1]])
    assert now.mask.tolist() == old.mask[jnp.array([2, 0, 0, 1])].tolist()
    assert now.context.tolist() == old.context[jnp.array([2, 0, 0, 1])].tolist()


def filled(slots, stacked, seed=0):
    """A cache of three rows with other numbers in every place."""
    rng = np.random.default_rng(seed)
    how = {"layers": 2, "shape": (2, 4, 3), "dtype": jnp.float32}
    cache = kv_cache.empty(3, slots, stacked=stacked, **how)

    def fill(x):
        numbers = rng.integers(0, 9999, x.shape)
        return jnp.asarray(numbers % 2 if x.dtype == bool else numbers, x.dtype)

    return jax.tree.map(fill, cache)


def by_slot(cache):
    """Keys and values with the slots last: [layers, B, K, H + V, S]."""
    values = jax.tree.map(lambda x: x.swapaxes(-1, -2), cache.values)
    both = (np.stack(list(x)) for x in (cache.keys, values))
    return np.concatenate(list(both), axis=-2)
