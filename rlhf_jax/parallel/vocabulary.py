"""The lookup in an embedding whose vocabulary and width are split over the mesh."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from rlhf_jax.parallel.sharding import activation_spec, parameter_spec


def lookup(table: jax.Array, tokens: jax.Array, dtype: str) -> jax.Array:
    """Return the rows [B, T, D] of a table [V, D] for tokens [B, T], cast to `dtype`.

    The table is not gathered. A device looks up the tokens of its whole fsdp group in
    its own rows and columns; then the devices exchange columns for rows of the batch.
    """
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    spec = parameter_spec(".embedding", table.shape, sizes)
    batch = activation_spec(("batch", "length"), tokens.shape, sizes)
    rows, columns = spec
    # The compiler decides for a batch that its devices do not divide.
    if not any(spec) or (columns and columns not in (batch[0] or ())):
        return table[tokens].astype(dtype)

    @functools.partial(jax.shard_map, in_specs=(spec, batch), out_specs=P(batch[0]))
    def local(table, tokens):
        if columns:
            tokens = jax.lax.all_gather(tokens, columns, axis=0, tiled=True)
        if rows:
            tokens = tokens - jax.lax.axis_index(rows) * table.shape[0]
        mine = (tokens >= 0) & (tokens < table.shape[0])
        found = table[jnp.where(mine, tokens, 0)].astype(dtype)
        if rows:
            found = jax.lax.psum(jnp.where(mine[..., None], found, 0), rows)
        if columns:
            found = jax.lax.all_to_all(found, columns, 0, 2, tiled=True)
        return found

    return local(table, tokens)
