"""Arrays that are computed once and kept on disk, with fingerprints of their inputs."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from rlhf_jax.files import read_arrays, write_arrays
from rlhf_jax.shared_work import first_does
from rlhf_jax.training.checkpoints import flatten

# Fields of a model's config that change results by no more than rounding.
HOW_TO_COMPUTE = ("attention", "remat", "scan_layers")


def cached(
    path: Path,
    made_from: dict[str, str],
    compute: Callable[[], np.ndarray],
    *,
    shape: tuple[int, ...],
) -> np.ndarray:
    """Return the array of a .npz file, or `compute()`, which is then written there.

    Args:
        made_from: the inputs of the array, name -> fingerprint.
        shape: the shape of the array, which is float32.

    Raises:
        ValueError: see `read`.
    """
    values = read(path, made_from, shape)
    if values is None:
        values = compute()
        write(path, values, made_from)
    return values


class OnDemand:
    """An array whose elements are computed at their first use and kept in a .npz file.

    Args:
        made_from: the inputs of the array, name -> fingerprint.
        compute: a function from indices, int [batch_size], to elements, float32; an
            element that is NaN is computed again at its next use.
        size: the number of elements of the array.

    Raises:
        ValueError: see `read`.
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
        self._values = read(path, made_from, (size,), holes=True)
        if self._values is None:
            self._values = np.full(size, np.nan, np.float32)

    @property
    def known(self) -> int:
        """The number of elements computed so far."""
        return int((~np.isnan(self._values)).sum())

    def at(self, index: np.ndarray) -> np.ndarray:
        """Return the elements at these indices, float32 [len(index)]."""
        for _ in range(0, np.isnan(self._values[index]).sum(), self._batch_size):
            places = self._next_batch(index)
            self._values[places] = self._compute(places)
            write(self._path, self._values, self._made_from)
        return self._values[index]

    def _next_batch(self, index: np.ndarray) -> np.ndarray:
        """Return `batch_size` indices of missing elements: first those of `index`, then
        others, repeated from the first where there are too few."""
        missing = np.isnan(self._values)
        wanted = index[missing[index]]
        others = np.setdiff1d(np.flatnonzero(missing), wanted)
        return np.resize(np.concatenate([wanted, others]), self._batch_size)


def read(
    path: Path, made_from: dict[str, str], shape: tuple[int, ...], *, holes=False
) -> np.ndarray | None:
    """Return the array of a .npz file, float32 of `shape`; None without a valid file. A
    damaged file is renamed to NAME.damaged, with a warning.

    Args:
        holes: True allows NaN as an element.

    Raises:
        ValueError: the array was made from other inputs; names the inputs and says what
            to do.
    """
    is_good = first_does(_is_good, path, made_from, shape, holes)
    return read_arrays(path)["values"] if is_good else None


def _is_good(path: Path, made_from: dict, shape: tuple, holes: bool) -> bool:
    try:
        arrays = read_arrays(path)
    except FileNotFoundError:
        return False
    except ValueError as error:
        return _set_aside(path, str(error))
    try:
        record, values = json.loads(str(arrays["record"])), arrays["values"]
        recorded, checksum = dict(record["made_from"]), record["sha256"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return _set_aside(path, f"{path} has no record of what it was made from.")
    if checksum != _sum(values):
        return _set_aside(path, f"The values in {path} are not what was written.")
    differing = [name for name in made_from if recorded.get(name) != made_from[name]]
    if differing:
        raise ValueError(
            f"{path} was made from another {' and '.join(differing)}. Delete it, and "
            "it is computed anew, or name another file."
        )
    fits = values.shape == shape and values.dtype == np.float32
    if not fits or not (~np.isinf(values) if holes else np.isfinite(values)).all():
        return _set_aside(
            path,
            f"{path} holds {values.dtype} {values.shape}, perhaps not finite, "
            f"instead of float32 {shape}.",
        )
    return True


def _set_aside(path: Path, reason: str) -> bool:
    damaged = path.rename(path.with_name(path.name + ".damaged"))
    logging.warning("%s It is computed anew; the old file is %s.", reason, damaged)
    return False


def write(path: Path, values: np.ndarray, made_from: dict[str, str]) -> None:
    """Write an array and the fingerprints of its inputs, in process 0 alone."""
    record = json.dumps({"made_from": made_from, "sha256": _sum(values)})
    first_does(write_arrays, path, {"values": values, "record": np.array(record)})


def _sum(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values)).hexdigest()


def fingerprint(data) -> str:
    """Return the SHA-256 of data that JSON can hold."""
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()


def weights_fingerprint(model) -> str:
    """Return the SHA-256 of a model's config, without the fields of `HOW_TO_COMPUTE`,
    and of a checksum of every parameter.

    The checksum is the sum modulo 2^32 of the bits of all elements, each multiplied by
    an odd number given by its index. It is computed on the devices that hold the
    weights, is exact, and is the same for any sharding.
    """
    flat = flatten(model)
    sums = jax.device_get(jax.jit(_checksums)(flat))
    record = [[k, str(x.dtype), x.shape, int(sums[k])] for k, x in flat.items()]
    config = dataclasses.asdict(model.config)
    config = {k: x for k, x in config.items() if k not in HOW_TO_COMPUTE}
    return fingerprint([config, sorted(record)])


def _checksums(flat: dict[str, jax.Array]) -> dict[str, jax.Array]:
    def checksum(x):
        unsigned = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
        bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
        place = jax.lax.iota(jnp.uint32, x.size).reshape(x.shape)
        return (bits * (2 * place + 1)).sum(dtype=jnp.uint32)

    return jax.tree.map(checksum, flat)
