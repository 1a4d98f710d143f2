"""Transfer of tensors between safetensors files and devices.

Weights go from the file to the device in chunks of at most `CHUNK_BYTES`, one device's
slice after another, so that a whole model never lies in the host's memory.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from absl import logging
from safetensors import SafetensorError, safe_open

from rlhf_jax.files import read_json
from rlhf_jax.models.huggingface_names import IGNORED, Piece

CHUNK_BYTES = 2**26
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
}
# A box of an array: a half-open range (start, stop) for each axis.
Box = tuple[tuple[int, int], ...]


class Tensor:
    """A tensor in a file, mapped into memory only while it is read."""

    def __init__(self, file: Path, header: dict, start: int):
        if header["dtype"] not in _DTYPES:
            raise ValueError(
                f"{file} has numbers of type {header['dtype']}: only floats of 16 bits "
                "and more are read, so get the model without quantisation."
            )
        self.file = file
        self.dtype = np.dtype(_DTYPES[header["dtype"]])
        self.shape = tuple(header["shape"])
        self.offset = start + header["data_offsets"][0]

    def map(self) -> np.ndarray:
        return np.memmap(self.file, self.dtype, "r", self.offset, self.shape)


def list_tensors(folder: Path) -> dict[str, Tensor]:
    """Return every tensor of a folder except the `IGNORED` ones: the tensors of
    model.safetensors, else of the files in its index, else of all *.safetensors.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is broken, or of an unsupported kind.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json.")
    present = files = sorted(folder.glob("*.safetensors"))
    if (folder / SINGLE).is_file():
        files = [folder / SINGLE]
    elif (folder / INDEX).is_file():
        where = read_json(folder / INDEX).get("weight_map")
        names = list(where.values()) if isinstance(where, dict) else [None]
        plain = [isinstance(x, str) and Path(x).name == x != ".." for x in names]
        if not all(plain) or "" in names or not names:
            raise ValueError(
                f"{folder / INDEX} has no weight_map of file names in this folder."
            )
        files = [folder / name for name in sorted(set(names))]
        absent = [file.name for file in files if file not in present]
        if absent:
            raise FileNotFoundError(f"{folder} lacks files of its index: {absent}.")
    others = [file.name for file in present if file not in files]
    if others:
        logging.warning("%s: %s are not read.", files[0], ", ".join(others))
    if not files:
        if any(folder.glob("*.bin")):
            raise ValueError(
                f"{folder} has weights in *.bin files only. These are pickles, which "
                "can run code, and are not read here. Convert them once, where you "
                "trust them: safetensors.torch.save_file(torch.load(FILE, "
                "weights_only=True), FILE.replace('.bin', '.safetensors')), and the "
                "same for the names in the index."
            )
        raise FileNotFoundError(f"{folder} has no *.safetensors.")
    tensors = {}
    for file in files:
        for name, tensor in tensors_of(file).items():
            if IGNORED.fullmatch(name):
                continue
            if name in tensors:
                raise ValueError(
                    f"{name} is in {tensors[name].file} and in {file}: remove one of "
                    "the two sets of files."
                )
            tensors[name] = tensor
    if any("prefix_encoder" in name for name in tensors):
        raise ValueError(
            f"{folder} is a P-tuning checkpoint (it has a prefix_encoder)."
        )
    return tensors


def tensors_of(file: Path) -> dict[str, Tensor]:
    """Return every tensor of a safetensors file.

    Raises:
        ValueError: the file is broken, or has numbers of an unsupported type.
    """
    header, start = _read_header(file)
    header.pop("__metadata__", None)
    return {name: Tensor(file, entry, start) for name, entry in header.items()}


def metadata_of(file: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file. Raises the errors of `tensors_of`."""
    return _read_header(file)[0].get("__metadata__") or {}


def _read_header(file: Path) -> tuple[dict[str, dict], int]:
    """Return the header of a safetensors file, and the offset at which data begins.

    Raises:
        ValueError: the file is not a safetensors file, or was cut off or changed.
    """
    try:
        with safe_open(file, framework="numpy"):
            pass  # the library checks every entry: type, shape and place
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{file} is not a safetensors file, or was cut off: get it again ({error})."
        ) from None
    with file.open("rb") as f:
        size = int.from_bytes(f.read(8), "little")
        header = json.loads(f.read(size))
    return header, 8 + size


def fill(
    shape: tuple[int, ...],
    dtype,
    sharding: jax.sharding.Sharding,
    read: Callable[[Box], np.ndarray],
    *,
    stacked: int,
) -> jax.Array:
    """Return an array whose device slices are read one after another, in chunks.

    Args:
        read: returns a box of the array.
        stacked: the number of first axes (of layers, of experts) whose parts are in
            tensors of their own.
    """
    devices_of: dict[tuple, list] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        slices = zip(index, shape, strict=True)
        box = tuple(s.indices(size)[:2] for s, size in slices)
        devices_of.setdefault(box, []).append(device)
    arrays = []
    for box, devices in devices_of.items():
        chunks = list(_split(box, jnp.dtype(dtype).itemsize, stacked))
        if len(chunks) == 1:
            with np.errstate(over="ignore"):  # `check_finite` reports an overflow
                host = read(box).astype(dtype)
            arrays += [jax.device_put(host, device) for device in devices]
            continue
        lengths = [hi - lo for lo, hi in box]
        parts = [jnp.zeros(lengths, dtype, device=device) for device in devices]
        for chunk in chunks:
            host = read(chunk)
            at = tuple(
                lo - start for (lo, _), (start, _) in zip(chunk, box, strict=True)
            )
            for i, device in enumerate(devices):
                # Block, or copies of the chunks pile up in the queue.
                piece = jax.device_put(host, device)
                parts[i] = jax.block_until_ready(_put(parts[i], piece, at))
        arrays += parts
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


def read_box(parts: list[Piece], box: Box, tensors: dict[str, Tensor]) -> np.ndarray:
    """Read a box of a parameter from the files, in the files' dtype."""
    stacked = parts[0].layers is not None
    layers = parts[0].layers[slice(*box[0])] if stacked else [None]
    letters = dict(zip(parts[0].ours, box[1:] if stacked else box, strict=True))
    first = parts[0].tensor.replace("{i}", str(layers[0]))
    out = np.empty([hi - lo for lo, hi in box], tensors[first].dtype)
    for i, layer in enumerate(layers):
        target = out[i] if stacked else out
        for piece in parts:
            there = _index_ours(piece, letters)
            if there is not None:
                tensor = tensors[piece.tensor.replace("{i}", str(layer))].map()
                target[there] = _in_our_order(piece, letters, tensor)
    return out


def read_piece(piece: Piece, tensor: np.ndarray, parameter: np.ndarray) -> None:
    """Copy the part of a tensor that a piece names into a parameter (of one layer)."""
    sizes = zip(piece.ours, parameter.shape, strict=True)
    letters = {letter: (0, size) for letter, size in sizes}
    parameter[_index_ours(piece, letters)] = _in_our_order(piece, letters, tensor)


def write_piece(
    piece: Piece, parameter: np.ndarray, tensor: np.ndarray, *, expert: int = 0
) -> None:
    """Copy the part of a parameter (of one layer) that a piece names into a tensor.

    Args:
        expert: the number of the parameter's first expert.
    """
    sizes = zip(piece.ours, parameter.shape, strict=True)
    letters = {letter: (0, size) for letter, size in sizes}
    if "e" in letters:
        letters["e"] = (expert, expert + letters["e"][1])
    target = _in_our_order(piece, letters, tensor)
    target[...] = parameter[_index_ours(piece, letters)]


def _split(box: Box, itemsize: int, stacked: int) -> Iterator[Box]:
    """Yield boxes of at most CHUNK_BYTES that make up `box`: whole layers if they
    fit, else whole experts."""
    lengths = [hi - lo for lo, hi in box]
    if np.prod(lengths) * itemsize <= CHUNK_BYTES or max(lengths, default=1) == 1:
        yield box
        return
    several = [axis for axis in range(stacked) if lengths[axis] > 1]
    axis = several[0] if several else int(np.argmax(lengths))
    lo, hi = box[axis]
    middle = (lo + hi) // 2
    for half in ((lo, middle), (middle, hi)):
        yield from _split((*box[:axis], half, *box[axis + 1 :]), itemsize, stacked)


@jax.jit(donate_argnums=0)
def _put(whole, piece, at):
    return jax.lax.dynamic_update_slice(whole, piece.astype(whole.dtype), at)


def _index_ours(piece: Piece, letters) -> tuple | None:
    """Return the index of a piece in a box's buffer, None if the box excludes it."""
    part = dict(piece.part)
    if any(not lo <= part.get(x, lo) < hi for x, (lo, hi) in letters.items()):
        return None
    index = [part[x] - letters[x][0] if x in part else slice(None) for x in piece.ours]
    if piece.dims is not None:
        first, _, step, there = piece.dims
        lo, hi = _dims_there(piece, letters["h"])
        start = first + step * (lo - there) - letters["h"][0]
        index[piece.ours.index("h")] = slice(start, start + step * (hi - lo), step)
    return tuple(index)


def _dims_there(piece: Piece, ours: tuple[int, int]) -> tuple[int, int]:
    """Return the range of the tensor's dims of a head that a range of ours holds."""
    first, stop, step, there = piece.dims
    # Ours of the piece below `bound`, counted.
    lo, hi = (max(0, -(-(min(bound, stop) - first) // step)) for bound in ours)
    return there + lo, there + hi


def _in_our_order(piece: Piece, letters, tensor: np.ndarray) -> np.ndarray:
    """Return the view of a tensor that belongs to a box, axes in the parameter's
    order."""
    axes = piece.rows + piece.columns
    rows = int(np.prod([size for _, size in piece.rows]))
    view = tensor[piece.start : piece.start + rows]
    view = view.reshape([size for _, size in axes])
    picked, shift = dict(piece.picked), dict(piece.shift)
    if piece.dims is not None:
        letters = letters | {"h": _dims_there(piece, letters["h"])}
    index = []
    for x, _ in axes:
        move = shift.get(x, 0)
        index.append(
            picked[x]
            if x in picked
            else slice(letters[x][0] + move, letters[x][1] + move)
        )
    left = [x for x, _ in axes if x not in picked]
    part = dict(piece.part)
    order = [left.index(x) for x in piece.ours if x not in part]
    return view[tuple(index)].transpose(order)
