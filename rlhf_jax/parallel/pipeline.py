"""Layers spread over the mesh's `stage` axis, through which a batch goes in parts.

One program of one `jit`: a buffer holds what each stage has before it; in every step
all stages run their layers at once, and the buffer rolls on by one (a permutation
between neighbours). M microbatches take M + S - 1 steps through S stages: S - 1 steps'
time is lost to filling and draining. The backward pass is that of the loop, in reverse.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from rlhf_jax.parallel.sharding import ACTIVATIONS


def num_stages() -> int:
    """Of the current mesh; 1: no pipeline."""
    return dict(jax.sharding.get_abstract_mesh().shape).get("stage", 1)


def apply_stages(layers, apply: Callable, x, rows):
    """x through all layers, a microbatch for each row that a device holds.

    Args:
        apply: `(layer, x, rows) -> x` for some rows of the batch.
        x, rows: what goes through, and what stays the same for a row: arrays whose
            first axis is the batch.
    """
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    stages, width = sizes["stage"], sizes["data"] * sizes["fsdp"]
    spec = P("stage", ACTIVATIONS["batch"])
    if x.shape[0] % width:  # rows that devices do not share: all at once
        spec, width = P("stage"), x.shape[0]
    count = x.shape[0] // width
    layers = jax.tree.map(lambda p: p.reshape(stages, -1, *p.shape[1:]), layers)

    def split(x):  # microbatch m has every count-th row, so that devices keep theirs
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
        x = place(jax.vmap(run, spmd_axis_name="stage")(layers, x, rows))
        return (x, rows), x  # a stage keeps its own: only the last one's are wanted

    empty = jax.tree.map(lambda x: jnp.zeros((stages, *x.shape[1:]), x.dtype), parts)
    _, out = jax.lax.scan(step, empty, jnp.arange(count + stages - 1))
    return out[stages - 1 :, -1].swapaxes(0, 1).reshape(x.shape)
