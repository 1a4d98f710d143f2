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
        hidden, cache = model.decode(tokens, mask, model.init_cache(batch, slots))

        def step(carry):
            token, cache = carry
            hidden, cache = model.decode(token, mask[:, :1], cache)
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
def test_rows_are_read_anew_and_slots_move_on(stacked):
    """Rows 2 and 0 are replaced in slots 3 and 4; then two slots fall off."""
    rng = np.random.default_rng(0)

    def filled(slots):
        shape = {"layers": 2, "kv_heads": 2, "head_dim": 4, "dtype": jnp.float32}
        cache = kv_cache.empty(3, slots, stacked=stacked, **shape)

        def fill(x):
            found = rng.integers(0, 99, x.shape)
            return jnp.asarray(found % 2 if x.dtype == bool else found, x.dtype)

        return jax.tree.map(fill, cache)

    old, new = filled(6)._replace(index=jnp.int32(5)), filled(2)
    rows = jnp.array([2, 0, 3])  # there is no row 3: what it has read is left out
    found = kv_cache.replace_rows(old, rows, new, slot=3)
    later = kv_cache.shift(found, 2)
    assert later.index == 3

    def by_slot(cache):  # [layers] x [B, K, H, S]
        stored = cache.keys, jax.tree.map(lambda x: x.swapaxes(-1, -2), cache.values)
        return np.stack([np.stack(list(x)) for x in stored])

    was, read, now, moved = map(by_slot, (old, new, found, later))
    np.testing.assert_array_equal(now[:, :, 1], was[:, :, 1])
    for row, other in ((2, 0), (0, 1)):
        np.testing.assert_array_equal(now[:, :, row, ..., 3:5], read[:, :, other])
        mask = [False] * 3 + new.mask[other].tolist() + [False]
        assert found.mask[row].tolist() == mask
        assert found.context[row] == new.context[other]
        assert found.mask_place[row] == new.mask_place[other]
    for name in ("mask", "context", "mask_place"):
        assert jnp.array_equal(getattr(found, name)[1], getattr(old, name)[1])
    np.testing.assert_array_equal(moved[..., :4], now[..., 2:])
    assert (moved[..., 4:] == 0).all()
    np.testing.assert_array_equal(later.mask[:, :4], found.mask[:, 2:])
    assert not later.mask[:, 4:].any()
