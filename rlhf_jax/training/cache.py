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
        ValueError: as `read`.
    """
    values = read(path, made_from)
    if values is None:
        values = compute()
        write(path, values, made_from)
    return values


class OnDemand:
    """An array whose elements are computed when they are first asked for, and kept in a
    .npz file.

    Args:
        made_from: what it depends on, name -> fingerprint.
        compute: places in the array, int [batch_size] -> their elements, float32; one
            that is NaN is computed again when it is next asked for.
        size: of the array.

    Raises:
        ValueError: as `read`.
    """

    def __init__(
        self,
        path: Path,
        made_from: dict[str, str],
        compute: Callable[[np.ndarray], np.ndarray],
        *,
        size: int,
        batch_size: int,
    ):
        self._path, self._made_from = path, made_from
        self._compute, self._batch_size = compute, batch_size
        self._values = read(path, made_from)
        if self._values is None:
            self._values = np.full(size, np.nan, np.float32)

    def at(self, index: np.ndarray) -> np.ndarray:
        """The elements at these places, float32 [len(index)]."""
        for _ in range(0, np.isnan(self._values[index]).sum(), self._batch_size):
            places = self._next_batch(index)
            self._values[places] = self._compute(places)
            write(self._path, self._values, self._made_from)
        return self._values[index]

    def _next_batch(self, index: np.ndarray) -> np.ndarray:
        """Places that are missing: those asked for, then others; and from the beginning
        again where these are too few."""
        missing = np.isnan(self._values)
        wanted = index[missing[index]]
        others = np.setdiff1d(np.flatnonzero(missing), wanted)
        return np.resize(np.concatenate([wanted, others]), self._batch_size)


def read(path: Path, made_from: dict[str, str]) -> np.ndarray | None:
    """The array of a .npz file; None where there is no such file.

    Raises:
        ValueError: the file is broken, or was made from something else; says what
            differs and what to do.
    """
    if not path.exists():
        return None
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


def write(path: Path, values: np.ndarray, made_from: dict[str, str]) -> None:
    """Keep an array; of several processes the first does."""
    if jax.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp.npz")
        np.savez(temporary, values=values, made_from=json.dumps(made_from))
        temporary.replace(path)


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
