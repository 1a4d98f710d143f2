"""Pipeline parallelism: layers split over the mesh's `pipe` axis, batches in parts.

One `jit` holds the pipeline. A buffer holds the input of each stage; in every step all
stages run their layers at once, and the buffer rolls on by one stage (a permutation
between neighbours). M microbatches take M + S - 1 steps through S stages: S - 1 steps
are lost to filling and draining. The backward pass is the loop in reverse.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from rlhf_jax.parallel.sharding import ACTIVATIONS


def pipe_size() -> int:
    """Return the size of the current mesh's pipe axis; 1 means no pipeline."""
    return dict(jax.sharding.get_abstract_mesh().shape).get("pipe", 1)


def apply_stages(layers, apply: Callable, x, rows):
    """Send x through all layers, one microbatch for each row that a device holds.

    Args:
        apply: `(layer, x, rows) -> x` for some rows of the batch.
        x: the arrays that the layers transform; the first axis is the batch.
        rows: arrays that stay the same for a row; the first axis is the batch.
    """
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    stages, width = sizes["pipe"], sizes["data"] * sizes["fsdp"]
    spec = P("pipe", ACTIVATIONS["batch"])
    if x.shape[0] % width:  # devices do not divide the rows: one microbatch
        spec, width = P("pipe"), x.shape[0]
    count = x.shape[0] // width
    layers = jax.tree.map(lambda p: p.reshape(stages, -1, *p.shape[1:]), layers)

    def split(x):  # microbatch m has every count-th row: devices keep theirs
        return x.reshape(width, count, *x.shape[1:]).swapaxes(0, 1)

    parts = jax.tree.map(split, (x, rows))

    def run(layers, x, rows):
        return jax.lax.scan(lambda x, p: (apply(p, x, rows), None), x, layers)[0]

    def place(x):
        return jax.lax.with_sharding_constraint(x, spec)

    def step(buffer, i):
        entering = jax.tree.map(lambda x: x[jnp.minimum(i, count - 1)], parts)
        x, rows = jax.tree.map(
            lambda held, new: place(jnp.roll(held, 1, axis=0).at[0].set(new)),
            buffer,
            entering,
        )
        x = place(jax.vmap(run, spmd_axis_name="pipe")(layers, x, rows))
        return (x, rows), x  # of `x`, only the last stage's part is used

    empty = jax.tree.map(lambda x: jnp.zeros((stages, *x.shape[1:]), x.dtype), parts)
    _, out = jax.lax.scan(step, empty, jnp.arange(count + stages - 1))
    return out[stages - 1 :, -1].swapaxes(0, 1).reshape(x.shape)
