"""The cache is written in place."""

import re

import jax
import jax.numpy as jnp

from tests.models.families import FAMILIES, random_model, random_tokens


def test_a_decode_loop_copies_no_cache():
    """Copying it in each step would cost more than the step."""
    model = random_model(FAMILIES["v2"])
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

    # The compiler that users get, not the quick one of these tests.
    jax.config.update("jax_disable_most_optimizations", False)
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
