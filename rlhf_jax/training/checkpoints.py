"""Checkpoints with orbax: asynchronous, sharded, numbered by step.

A checkpoint holds named items (the model, the optimizer's state, ...), each a flat
map from a readable parameter path to an array, and a JSON record with the model's
configuration, so that the weights of any workdir load without its config. A checkpoint
appears whole or not at all, with checksums, by which later damage is detected before
the checkpoint is used.
"""

import contextlib
import json
import os
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from rlhf_jax.files import disk_trouble, read_json
from rlhf_jax.models.adapters import base_parts, join, own_part
from rlhf_jax.shared_work import first_does
from rlhf_jax.training import checksums, preemption
from rlhf_jax.training.workdir import due

META = "meta"


class SaveError(OSError):
    """A checkpoint could not be written; the earlier checkpoints are intact."""


def path_name(path: tuple) -> str:
    """Return a parameter's name in checkpoints: `blocks.attention.query.kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")


def flatten(tree) -> dict[str, jax.Array]:
    """Return a tree as a flat dict from parameter names to arrays."""
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


class DamagedError(ValueError):
    """The files of a checkpoint differ from those that were saved."""


_open: weakref.WeakSet["Checkpoints"] = (
    weakref.WeakSet()
)  # the checkpoints of runs that write


def finish_saves() -> list[str]:
    """Wait for the saves under way, successful or not, before a program ends early.
    Return the newest checkpoint of each run in progress."""
    newest = []
    for checkpoints in list(_open):
        checkpoints.wait_after_error()
        newest += [str(checkpoints.folder / str(s)) for s in checkpoints.steps()[-1:]]
    return newest


class Checkpoints:
    """The checkpoints of one workdir. Saves run in the background.

    Args:
        workdir: the run's folder; checkpoints lie in `workdir/checkpoints/STEP`.
        keep: how many of the newest checkpoints to keep; None only reads checkpoints.
        best: the metric whose highest value marks a checkpoint that is kept as well,
            "-NAME" for the lowest value; "" keeps none besides.
    """

    def __init__(self, workdir: str | os.PathLike, *, keep: int | None, best: str = ""):
        self.folder = Path(workdir).absolute() / "checkpoints"
        self._keep, self._best = keep, best
        self._scores: dict[int, float | None] = {}  # the scores read so far, by step
        self._saving, self._stopping, self._is_last = 0, False, False
        if keep is not None:
            # A run that was cut off in this program, by Ctrl-C in a notebook for
            # instance, may still be saving; its save must not be taken for a remnant.
            for other in list(_open):
                if other.folder == self.folder:
                    other.wait_after_error()
                    _open.discard(other)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self,
            cleanup_tmp_directories=keep is not None,
            async_options=ocp.AsyncOptions(
                post_finalization_callback=self._sign,
                # Otherwise an error in making folders leaves threads waiting for them.
                create_directories_asynchronously=False,
            ),
        )
        self._manager = ocp.CheckpointManager(str(self.folder), options=options)
        if keep is not None:
            _open.add(self)

    def steps(self) -> list[int]:
        """Return the steps of all checkpoints, including damaged ones, in order."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int:
        """Return the step of the newest whole checkpoint; 0 without any checkpoint. A
        save in the background is completed first. Damaged checkpoints are named in the
        log, and renamed if this run writes.

        Raises:
            DamagedError: there are checkpoints, and none of them is whole.
            SaveError: the last save could not be written.
        """
        self.wait()
        damaged = []
        for step in reversed(self.steps()):
            damage = _damage(self.folder / str(step))
            if not damage:
                if self._keep is not None:
                    self._set_aside(damaged)
                return step
            logging.error("%s/%d is damaged, not used: %s.", self.folder, step, damage)
            damaged.append(step)
        if damaged:
            rest = "delete the folder and start from nothing"
            raise DamagedError(
                f"No checkpoint in {self.folder} is whole: {damage}. Restore one from "
                f"a copy, or {rest if self._keep is not None else 'name another run'}."
            )
        return 0

    def find(self, which: str) -> int:
        """Return the step of a checkpoint: "" is the newest whole one, "120" that of
        step 120, "best" the one with the best score.

        Raises:
            ValueError: there is no such checkpoint; the existing ones are listed.
            DamagedError: the checkpoint's files differ from those that were saved.
        """
        if not which:
            return self.latest_step()
        steps = self.steps()
        matching = [step for step in steps if str(step) == which]
        if which == "best":
            matching = self._best_of(steps)
        if not matching:
            hint = " SFT and PPO mark one where they evaluate." * (which == "best")
            raise ValueError(
                f"{self.folder} has no checkpoint {which!r}, only {steps}.{hint}"
            )
        damage = _damage(self.folder / str(matching[0]))
        if damage:
            raise DamagedError(f"{self.folder}/{matching[0]} is damaged: {damage}.")
        return matching[0]

    def due(self, step: int, every: int, total: int) -> bool:
        """Return True if this step needs a save: by `workdir.due`, or because SIGTERM
        has arrived; then `save` ends the program. Call it after every step."""
        preemption.wait_for_step(True)
        self._stopping = preemption.received() or self._manager.reached_preemption(step)
        self._is_last = step == total
        return self._stopping or due(step, every, total)

    def save(
        self, step: int, items: dict, meta: dict, numbers: dict | None = None
    ) -> None:
        """Start saving `items` (name -> pytree of arrays) and a JSON-able `meta`. The
        base under adapters is not saved.

        Args:
            numbers: metrics of this step, which may include `best`.

        Raises:
            SaveError: this or the previous save could not be written.
            Preempted: after the save, when SIGTERM or Ctrl-C has arrived.
        """
        flat = {name: flatten(own_part(item)) for name, item in items.items()}
        shapes = {
            name: {k: list(x.shape) for k, x in item.items()}
            for name, item in flat.items()
        }
        arguments = {name: ocp.args.StandardSave(item) for name, item in flat.items()}
        score = (numbers or {}).get(self._best.removeprefix("-"), np.nan)
        score = -score if self._best.startswith("-") else score
        self._scores[step] = score if np.isfinite(score) else None
        record = {
            "shapes": shapes,
            "score": self._scores[step],
            "checksums": True,  # a checkpoint without its checksums is damaged
        }
        arguments[META] = ocp.args.JsonSave(meta | record)
        self.wait()
        self._saving = step
        with self._disk_errors():
            self._manager.save(step, args=ocp.args.Composite(**arguments))
        if self._is_last:
            preemption.wait_for_step(False)
            self._stopping = self._stopping or preemption.received()
        if self._stopping:
            self.wait()
            raise preemption.Preempted(f"saved {self.folder}/{step}")

    def wait(self) -> None:
        """Wait until the last save is on disk.

        Raises:
            SaveError: the save could not be written.
        """
        with self._disk_errors():
            self._manager.wait_until_finished()

    def wait_after_error(self) -> None:
        """Wait until the last save of a run that has ended early is on disk, or has
        failed, which the log says."""
        try:
            self.wait()
        except Exception as error:
            logging.error("%s", error)

    def delete_from(self, step: int) -> None:
        """Delete the checkpoints of `step` and of all later steps."""
        self.wait()
        for saved in self.steps():
            if saved >= step:
                self._manager.delete(saved)

    def meta(self, step: int) -> dict:
        """Read the JSON record of a checkpoint.

        Raises:
            DamagedError: the record is missing or broken.
        """
        try:
            return read_json(self.folder / str(step) / META / "metadata")
        except (FileNotFoundError, ValueError) as error:
            raise DamagedError(f"{self.folder}/{step} is damaged: {error}") from None

    def restore(self, step: int, like: dict) -> dict:
        """Restore the items of a checkpoint. If the files are intact and still cannot
        be loaded, for lack of memory for instance, the error is passed on unchanged.

        Args:
            like: name -> pytree of arrays or `jax.ShapeDtypeStruct`s with shardings:
                the structure, dtypes and shardings to restore into. Arrays of a base
                under adapters are passed on as they are.

        Raises:
            ValueError: names or shapes differ from the saved ones.
            DamagedError: files differ from those that were saved.
        """
        own = own_part(like)
        wanted = {k: flatten(v) for k, v in own.items()}
        self._check(step, wanted)
        arguments = ocp.args.Composite(
            **{
                k: ocp.args.StandardRestore(jax.tree.map(_abstract, v))
                for k, v in wanted.items()
            }
        )
        restored = self._restore(step, arguments)
        restored = {name: unflatten(restored[name], own[name]) for name in like}
        return join(restored, base_parts(like))

    def arrays(
        self, step: int, item: str, like: dict[str, jax.ShapeDtypeStruct]
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Yield the arrays of an item one after another, in the host's memory, in the
        dtypes of `like`. Only checkpoints that are opened to be read can do this.

        Raises:
            ValueError, DamagedError: as in `restore`.
        """
        self._check(step, {item: like})
        for name, x in like.items():
            how = ocp.RestoreArgs(restore_type=np.ndarray, dtype=x.dtype)
            argument = ocp.args.PyTreeRestore(
                {name: x}, restore_args={name: how}, partial_restore=True
            )
            restored = self._restore(step, ocp.args.Composite(**{item: argument}))
            yield name, restored[item][name]

    def _restore(self, step: int, arguments: ocp.args.Composite) -> dict:
        try:
            return self._manager.restore(step, args=arguments)
        except Exception as error:
            damage = _damage(self.folder / str(step))
            if damage:
                raise DamagedError(
                    f"{self.folder}/{step} is damaged: {damage}."
                ) from error
            error.add_note(f"{self.folder}/{step} is whole, but was not loaded here.")
            raise

    def close(self) -> None:
        self.wait()
        self._manager.close()
        if self._keep is None:
            return
        _open.discard(self)
        preemption.wait_for_step(False)
        if preemption.received():
            raise preemption.Preempted(f"all of {self.folder} is saved")

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        """Return which checkpoints to keep, the newest and the best: the interface of
        orbax's preservation policies."""
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = steps[-self._keep :]
        if self._best:
            kept += self._best_of(steps)[:1]
        return [step in kept for step in steps]

    def _best_of(self, steps: list[int]) -> list[int]:
        """Return the steps that have a score, the highest score first, then the
        earliest step. A checkpoint with a damaged record has no score."""
        for step in steps:
            if step in self._scores:
                continue
            damage = _damage(self.folder / str(step), META)
            if damage:
                logging.error("%s/%d is damaged: %s.", self.folder, step, damage)
            self._scores[step] = None if damage else self.meta(step).get("score")
        scored = [step for step in steps if self._scores[step] is not None]
        return sorted(scored, key=lambda step: (-self._scores[step], step))

    def _sign(self) -> None:
        """Write the checksums; called in the background when all files are written,
        before the folder gets its name."""
        if jax.process_index() == 0:
            (unnamed,) = self.folder.glob(f"{self._saving}.*tmp*")
            checksums.write(unnamed)

    def _set_aside(self, steps: list[int]) -> None:
        """Rename these checkpoints, which keeps them and frees their steps for
        saves."""
        for step in steps:
            first_does(_rename_damaged, self.folder / str(step))
        self._manager.reload()

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        """Turn an error of the disk, however a library words it, into a SaveError;
        after any error there is no save to wait for."""
        try:
            yield
        except Exception as error:
            _open.discard(self)
            trouble = disk_trouble(error)
            if trouble is None:
                raise
            what, cure = trouble
            raise SaveError(
                f"{what}: no checkpoint could be saved in {self.folder}. The last "
                f"complete one is intact: {cure} and start the same command again."
            ) from error

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
    """Return True if a workdir holds a complete checkpoint."""
    folder = Path(workdir) / "checkpoints"
    return folder.is_dir() and any(entry.name.isdigit() for entry in folder.iterdir())


def workdir_of(folder: str | os.PathLike) -> tuple[Path, str]:
    """Split a path into a workdir and the name of a checkpoint for `Checkpoints.find`:
    WORKDIR names the newest, WORKDIR/checkpoints/120 and WORKDIR/checkpoints/best these
    checkpoints."""
    folder = Path(folder)
    is_one = folder.parent.name == "checkpoints" and has_checkpoint(folder.parents[1])
    return (folder.parents[1], folder.name) if is_one else (folder, "")


def _abstract(x) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None))


def _name_mismatch(expected: set, found: set) -> str:
    return (
        "parameter names differ.\n"
        f"  missing: {json.dumps(sorted(expected - found), indent=2)}\n"
        f"  not expected: {json.dumps(sorted(found - expected), indent=2)}"
    )


def _damage(folder: Path, item: str = "") -> str:
    """Describe the damage of a checkpoint, or of one of its items; "" without damage.
    Process 0 checks for all processes, which must use the same files."""
    return first_does(_look_for_damage, folder, item)


def _rename_damaged(folder: Path) -> None:
    damaged = folder.with_name(f"{folder.name}.damaged")
    shutil.rmtree(damaged, ignore_errors=True)
    folder.rename(damaged)


def _look_for_damage(folder: Path, item: str) -> str:
    try:
        return checksums.damage(folder, item)
    except FileNotFoundError:
        return _without_checksums(folder)


def _without_checksums(folder: Path) -> str:
    """Describe the damage of a checkpoint that has no checksums: "" where its record is
    whole and does not announce checksums, as in version 0.1."""
    try:
        record = read_json(folder / META / "metadata")
    except (FileNotFoundError, ValueError):
        return f"{checksums.FILE} and {META}/metadata cannot be read"
    return f"{checksums.FILE} is missing" if "checksums" in record else ""
