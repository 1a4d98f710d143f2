"""Layers spread over the mesh's `stage` axis, through which a batch goes in parts.

One program of one `jit`: a buffer holds what each stage has before it; in every step
all stages run their layers at once, and the buffer rolls on by one (a permutation
between neighbours). Of M microbatches and S stages, M + S - 1 steps are needed, of which
S - 1 fill and drain the pipeline. The backward pass is that of the loop: the same in
reverse.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from rlhf_jax.parallel.sharding import ACTIVATIONS


def num_stages() -> int:
    """Of the current mesh; 1: no pipeline."""
    return dict(jax.sharding.get_abstract_mesh().shape).get("stage", 1)


def check_layers(num_layers: int) -> None:
    """Refuse layers that the current mesh's stages do not share equally.

    Raises:
        ValueError: with the nearest numbers of stages that work.
    """
    stages = num_stages()
    if num_layers % stages:
        fitting = [n for n in range(1, num_layers + 1) if num_layers % n == 0]
        nearest = sorted(fitting, key=lambda n: abs(n - stages))[:2]
        raise ValueError(
            f"The mesh's stage={stages} does not divide {num_layers} layers. Nearest "
            f"sizes that do: {' or '.join(map(str, sorted(nearest)))}."
        )


def apply_stages(layers, apply: Callable, x, rows):
    """x through all layers, a microbatch for each row that a device holds.

    Args:
        apply: `(layer, x, rows) -> x` for some rows of the batch.
        x, rows: what goes through, and what stays the same for a row: arrays whose
            first axis is the batch.
    """
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    stages, width = sizes["stage"], sizes["data"] * sizes["fsdp"]
    batch = x.shape[0]
    width = width if batch % width == 0 else batch  # rows at a time
    count = batch // width
    layers = jax.tree.map(lambda p: p.reshape(stages, -1, *p.shape[1:]), layers)

    def split(x):  # microbatch m has every count-th row, so that devices keep theirs
        return x.reshape(width, count, *x.shape[1:]).swapaxes(0, 1)

    parts = jax.tree.map(split, (x, rows))

    def run(layers, x, rows):
        return jax.lax.scan(lambda x, layer: (apply(layer, x, rows), None), x, layers)[0]

    def place(x):
        spec = P("stage", ACTIVATIONS["batch"] if width > 1 and width != batch else None)
        return jax.lax.with_sharding_constraint(x, spec)

    def step(buffer, i):
        entering = jax.tree.map(lambda x: x[jnp.minimum(i, count - 1)], parts)
        x, rows = jax.tree.map(
            lambda held, new: place(jnp.roll(held, 1, axis=0).at[0].set(new)),
            buffer,
            entering,
        )
        x = place(jax.vmap(run, spmd_axis_name="stage")(layers, x, rows))
        return (x, rows), x[-1]

    empty = jax.tree.map(lambda x: jnp.zeros((stages, *x.shape[1:]), x.dtype), parts)
    _, out = jax.lax.scan(step, empty, jnp.arange(count + stages - 1))
    return out[stages - 1 :].swapaxes(0, 1).reshape(x.shape)
