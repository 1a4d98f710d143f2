"""Checkpoints with orbax: asynchronous, sharded, numbered by step.

A checkpoint holds named items (the model, the optimizer's state, ...), each a flat
map from a readable parameter path to an array, and a JSON record with the model's
configuration, so that the weights of any workdir load without its config.
"""

import json
import os
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from etils import epath

META = "meta"


class DiskFullError(OSError):
    """A checkpoint could not be written; the previous one is intact."""


def path_name(path: tuple) -> str:
    """A parameter's name in checkpoints: `blocks.attention.qkv.kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")


def flatten(tree) -> dict[str, jax.Array]:
    """A tree as a flat dict from parameter names to arrays."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {path_name(path): leaf for path, leaf in leaves}


def unflatten(flat: dict[str, jax.Array], like):
    """Put a flat dict's arrays into a tree with the structure of `like`.

    Raises:
        ValueError: the names differ; both sides are listed.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(like)
    names = [path_name(path) for path, _ in leaves]
    if set(names) != set(flat):
        raise ValueError(_name_mismatch(set(names), set(flat)))
    return jax.tree.unflatten(treedef, [flat[name] for name in names])


class Checkpoints:
    """The checkpoints of one workdir. Saves happen in the background.

    Args:
        workdir: the run's folder; checkpoints lie in `workdir/checkpoints/STEP`.
        keep: how many of the newest to keep.
    """

    def __init__(self, workdir: str | os.PathLike, *, keep: int):
        self.folder = epath.Path(workdir).absolute() / "checkpoints"
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=True
        )
        self._manager = ocp.CheckpointManager(str(self.folder), options=options)

    def latest_step(self) -> int:
        """The newest complete checkpoint's step; 0 when there is none."""
        return self._manager.latest_step() or 0

    def save(self, step: int, items: dict, meta: dict) -> None:
        """Start saving `items` (name -> pytree of arrays) and a JSON-able `meta`.

        Raises:
            DiskFullError: this or the previous save found no space.
        """
        flat = {name: flatten(item) for name, item in items.items()}
        shapes = {
            name: {k: list(x.shape) for k, x in item.items()}
            for name, item in flat.items()
        }
        arguments = {name: ocp.args.StandardSave(item) for name, item in flat.items()}
        arguments[META] = ocp.args.JsonSave(meta | {"shapes": shapes})
        with _disk_errors(self.folder):
            self._manager.save(step, args=ocp.args.Composite(**arguments))

    def wait(self) -> None:
        """Return when the last save is on disk."""
        with _disk_errors(self.folder):
            self._manager.wait_until_finished()

    def delete_from(self, step: int) -> None:
        """Delete the checkpoints of `step` and of all later steps."""
        self.wait()
        for saved in self._manager.all_steps():
            if saved >= step:
                self._manager.delete(saved)

    def meta(self, step: int) -> dict:
        """The JSON record of a checkpoint."""
        arguments = ocp.args.Composite(**{META: ocp.args.JsonRestore()})
        return self._manager.restore(step, args=arguments)[META]

    def restore(self, step: int, like: dict) -> dict:
        """The items of a checkpoint.

        Args:
            like: name -> pytree of arrays or `jax.ShapeDtypeStruct`s with shardings:
                the structure, dtypes and shardings to restore into.

        Raises:
            ValueError: names or shapes differ from what was saved.
        """
        wanted = {k: flatten(v) for k, v in like.items()}
        self._check(step, wanted)
        arguments = ocp.args.Composite(
            **{
                k: ocp.args.StandardRestore(jax.tree.map(_abstract, v))
                for k, v in wanted.items()
            }
        )
        restored = self._manager.restore(step, args=arguments)
        return {name: unflatten(restored[name], like[name]) for name in like}

    def close(self) -> None:
        self.wait()
        self._manager.close()

    def _check(self, step: int, wanted: dict) -> None:
        where, saved = self.folder / str(step), self.meta(step)["shapes"]
        for item, flat in wanted.items():
            if item not in saved:
                raise ValueError(f"{where} has no '{item}'; it has {sorted(saved)}.")
            if set(saved[item]) != set(flat):
                mismatch = _name_mismatch(set(flat), set(saved[item]))
                raise ValueError(f"{where}, '{item}': {mismatch}")
            wrong = [
                f"{name}: saved {tuple(saved[item][name])}, expected {x.shape}"
                for name, x in flat.items()
                if tuple(saved[item][name]) != x.shape
            ]
            if wrong:
                shown = "\n  ".join(wrong)
                raise ValueError(f"{where}, '{item}': shapes differ.\n  {shown}")


def has_checkpoint(workdir: str | os.PathLike) -> bool:
    """Whether a workdir holds a complete checkpoint."""
    folder = Path(workdir) / "checkpoints"
    return folder.is_dir() and any(
        entry.name.isdigit() and (entry / "_CHECKPOINT_METADATA").exists()
        for entry in folder.iterdir()
    )


def _abstract(x) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None))


def _name_mismatch(expected: set, found: set) -> str:
    return (
        "parameter names differ.\n"
        f"  missing: {json.dumps(sorted(expected - found), indent=2)}\n"
        f"  not expected: {json.dumps(sorted(found - expected), indent=2)}"
    )


class _disk_errors:
    """Turns a full disk, in whichever words it comes, into one clear error."""

    def __init__(self, folder):
        self.folder = folder

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if error is None:
            return
        text = str(error)
        if "No space left" in text or "ENOSPC" in text or "RESOURCE_EXHAUSTED" in text:
            raise DiskFullError(
                f"No space left to save a checkpoint in {self.folder}. The last "
                "complete checkpoint is intact: free some space and start the same "
                "command again."
            ) from error
