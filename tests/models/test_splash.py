"""The TPU's kernel, interpreted, against ordinary attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models.attention import attend, visible
from rlhf_jax.models.splash import splash_attend
from rlhf_jax.parallel.mesh import make_mesh

LENGTH = 136  # no multiple of the kernel's tiles
CASES = [
    (None, None, None),
    (None, (0, 40), None),
    ((2, 2, 2), None, (50, 93)),
    ((1, 2, 4), (0, 40, 90), None),
]


@pytest.mark.devices(8)
@pytest.mark.parametrize(("mesh", "segments", "examples"), CASES, ids=str)
def test_it_equals_ordinary_attention_forward_and_backward(mesh, segments, examples):
    """Padding on the left of one row and on the right of another; two key-value heads
    on two and on four devices; one response behind a prompt, and two; examples that
    start at other places in one row than in the others."""
    keys = jax.random.split(jax.random.key(0), 3)
    queries = jax.random.normal(keys[0], (4, LENGTH, 4, 128))
    k, v = (jax.random.normal(key, (4, 2, LENGTH, 128)) for key in keys[1:])
    slots = np.arange(LENGTH)
    mask = jnp.asarray([slots >= 0, slots >= 7, slots < 100, slots >= 0])
    if segments is not None:
        segments = sum((slots >= start for start in segments[1:]), start=0 * slots)
        segments = segments.astype(np.int32)
    if examples is not None:
        places = slots + np.array([[0], [0], [0], [9]])
        examples = sum((places >= start for start in examples), start=0 * places)
        examples = jnp.asarray(examples, jnp.int32)

    @jax.jit
    @jax.value_and_grad
    def theirs(arrays):
        q, k, v = arrays
        seen = visible(
            mask,
            query_slots=jnp.arange(LENGTH),
            segments=None
            if segments is None
            else jnp.broadcast_to(segments, mask.shape),
            examples=examples,
        )
        out = attend(q, k.swapaxes(2, 3), v, seen)
        return jnp.where(mask[:, :, None, None], out**2, 0.0).sum()

    @jax.jit
    @jax.value_and_grad
    def ours(arrays):
        q, k, v = arrays
        out = splash_attend(
            *(q, k.swapaxes(2, 3), v),
            mask=mask,
            segments=segments,
            examples=examples,
            interpret=True,
        )
        return jnp.where(mask[:, :, None, None], out**2, 0.0).sum()

    expected = theirs((queries, k, v))
    if mesh is None:
        got = ours((queries, k, v))
    else:
        with jax.set_mesh(make_mesh(mesh)):
            got = ours((queries, k, v))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
