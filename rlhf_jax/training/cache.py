"""Arrays that are computed once and kept on disk, with what they were computed from."""

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

# Fields of a model's config on which no number depends, but for its last digits.
HOW_TO_COMPUTE = ("attention", "remat", "scan_layers")


def cached(
    path: Path,
    made_from: dict[str, str],
    compute: Callable[[], np.ndarray],
    *,
    shape: tuple[int, ...],
) -> np.ndarray:
    """The array of a .npz file, or `compute()`, which is then kept there.

    Args:
        made_from: what the array depends on, name -> fingerprint.
        shape: of the array, float32.

    Raises:
        ValueError: as `read`.
    """
    values = read(path, made_from, shape)
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
        self._values = read(path, made_from, (size,), holes=True)
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


def read(
    path: Path, made_from: dict[str, str], shape: tuple[int, ...], *, holes=False
) -> np.ndarray | None:
    """The array of a .npz file, float32 of `shape`; None where there is no such file.
    A file that is not what was written is set aside as NAME.damaged, with a warning,
    and there is none.

    Args:
        holes: elements may be NaN.

    Raises:
        ValueError: it was made from something else; says from what and what to do.
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
    allowed = ~np.isinf(values) if holes else np.isfinite(values)
    if values.shape != shape or values.dtype != np.float32 or not allowed.all():
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
    """Keep an array; of several processes the first does."""
    record = json.dumps({"made_from": made_from, "sha256": _sum(values)})
    first_does(write_arrays, path, {"values": values, "record": np.array(record)})


def _sum(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values)).hexdigest()


def fingerprint(data) -> str:
    """SHA-256 of something that JSON can hold."""
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()


def weights_fingerprint(model) -> str:
    """SHA-256 of a model's config, but for `HOW_TO_COMPUTE`, and of a checksum of every
    parameter.

    The checksum is the sum modulo 2^32 of the bits of all elements, each times an odd
    number of its place: made where the weights lie, exact, the same for any sharding.
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
