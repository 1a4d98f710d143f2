"""Arrays that are computed once and kept on disk, with what they were computed from."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.training.checkpoints import flatten


def cached(
    path: Path, made_from: dict[str, str], compute: Callable[[], np.ndarray]
) -> np.ndarray:
    """The array of a .npz file, or `compute()`, which is then kept there.

    Args:
        made_from: what the array depends on, name -> fingerprint.

    Raises:
        ValueError: the file is broken, or was made from something else; says what
            differs and what to do.
    """
    if not path.exists():
        values = compute()
        if jax.process_index() == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(".tmp.npz")
            np.savez(temporary, values=values, made_from=json.dumps(made_from))
            temporary.replace(path)
        return values
    try:
        with np.load(path, allow_pickle=False) as file:
            values, recorded = file["values"], dict(json.loads(str(file["made_from"])))
    except Exception as error:  # whatever numpy and zipfile make of a broken file
        raise ValueError(
            f"{path} cannot be read ({error}): delete it, and it is computed anew."
        ) from None
    differing = [name for name in made_from if recorded.get(name) != made_from[name]]
    if differing:
        raise ValueError(
            f"{path} was made from another {' and '.join(differing)}. Delete it, and "
            "it is computed anew, or name another file."
        )
    return values


def fingerprint(data) -> str:
    """SHA-256 of something that JSON can hold."""
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()


def weights_fingerprint(model) -> str:
    """SHA-256 of a model's config and of a checksum of every parameter.

    The checksum is the sum modulo 2^32 of the bits of all elements, each times an odd
    number of its place: made where the weights lie, exact, the same for any sharding.
    """
    flat = flatten(model)
    sums = jax.device_get(jax.jit(_checksums)(flat))
    record = [[k, str(x.dtype), x.shape, int(sums[k])] for k, x in flat.items()]
    return fingerprint([dataclasses.asdict(model.config), sorted(record)])


def _checksums(flat: dict[str, jax.Array]) -> dict[str, jax.Array]:
    def checksum(x):
        unsigned = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
        bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
        place = jax.lax.iota(jnp.uint32, x.size).reshape(x.shape)
        return (bits * (2 * place + 1)).sum(dtype=jnp.uint32)

    return jax.tree.map(checksum, flat)
