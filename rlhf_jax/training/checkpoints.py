"""Checkpoints with orbax: asynchronous, sharded, numbered by step.

A checkpoint holds named items (the model, the optimizer's state, ...), each a flat
map from a readable parameter path to an array, and a JSON record with the model's
configuration, so that the weights of any workdir load without its config. It appears
whole or not at all, with checksums: what was damaged later is found before it is used.
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
from rlhf_jax.shared_work import first_does
from rlhf_jax.training import checksums, preemption
from rlhf_jax.training.workdir import due

META = "meta"


class SaveError(OSError):
    """A checkpoint could not be written; those before it are intact."""


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


class DamagedError(ValueError):
    """A checkpoint's files are not what was saved."""


_open: weakref.WeakSet["Checkpoints"] = weakref.WeakSet()  # of runs that write


def finish_saves() -> list[str]:
    """Wait until no save is under way, whatever became of it: for a program that ends
    early. Returns the newest checkpoint of each run that was going on."""
    newest = []
    for checkpoints in list(_open):
        try:
            checkpoints.wait()
        except Exception as error:
            logging.error("%s", error)
        newest += [str(checkpoints.folder / str(s)) for s in checkpoints.steps()[-1:]]
    return newest


class Checkpoints:
    """The checkpoints of one workdir. Saves happen in the background.

    Args:
        workdir: the run's folder; checkpoints lie in `workdir/checkpoints/STEP`.
        keep: how many of the newest to keep; None: this run only reads them.
        best: the number whose highest value marks one checkpoint that is kept as well,
            "-NAME" for the lowest; "": none.
    """

    def __init__(self, workdir: str | os.PathLike, *, keep: int | None, best: str = ""):
        self.folder = Path(workdir).absolute() / "checkpoints"
        self._keep, self._best = keep, best
        self._scores: dict[int, float | None] = {}  # by step, as far as known
        self._saving, self._stopping, self._is_last = 0, False, False
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self,
            cleanup_tmp_directories=keep is not None,
            async_options=ocp.AsyncOptions(
                post_finalization_callback=self._sign,
                # Or an error while folders are made leaves threads that wait for them.
                create_directories_asynchronously=False,
            ),
        )
        self._manager = ocp.CheckpointManager(str(self.folder), options=options)
        if keep is not None:
            _open.add(self)

    def steps(self) -> list[int]:
        """The steps of all checkpoints, damaged ones too, in order."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int:
        """The newest whole checkpoint's step; 0 when there is none at all. What is
        damaged is named in the log, and where this run writes, set aside.

        Raises:
            DamagedError: there are checkpoints, and none of them is whole.
        """
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
        """The step of the checkpoint that is meant: "" the newest whole one, "120" that
        of step 120, "best" the one whose number was best when it was saved.

        Raises:
            ValueError: there is none; those that there are are listed.
            DamagedError: its files are not what was saved.
        """
        if not which:
            return self.latest_step()
        steps = self.steps()
        found = [step for step in steps if str(step) == which]
        if which == "best":
            found = self._best_of(steps)
        if not found:
            hint = " SFT and PPO mark one where they evaluate." * (which == "best")
            raise ValueError(
                f"{self.folder} has no checkpoint {which!r}, only {steps}.{hint}"
            )
        damage = _damage(self.folder / str(found[0]))
        if damage:
            raise DamagedError(f"{self.folder}/{found[0]} is damaged: {damage}.")
        return found[0]

    def due(self, step: int, every: int, total: int) -> bool:
        """Whether to save after this step: as `workdir.due` says, or because SIGTERM
        has come; then `save` ends the program. To be asked after every step."""
        preemption.wait_for_step(True)
        self._stopping = preemption.asked() or self._manager.reached_preemption(step)
        self._is_last = step == total
        return self._stopping or due(step, every, total)

    def save(
        self, step: int, items: dict, meta: dict, numbers: dict | None = None
    ) -> None:
        """Start saving `items` (name -> pytree of arrays) and a JSON-able `meta`.

        Args:
            numbers: this step's, `best` perhaps among them.

        Raises:
            SaveError: the disk did not take this or the previous save.
            Preempted: after the save, when SIGTERM or Ctrl-C has come.
        """
        flat = {name: flatten(item) for name, item in items.items()}
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
            "checksums": True,  # without their file the checkpoint is damaged
        }
        arguments[META] = ocp.args.JsonSave(meta | record)
        self.wait()
        self._saving = step
        with self._disk_errors():
            self._manager.save(step, args=ocp.args.Composite(**arguments))
        if self._is_last:
            preemption.wait_for_step(False)
            self._stopping = self._stopping or preemption.asked()
        if self._stopping:
            self.wait()
            raise preemption.Preempted(f"saved {self.folder}/{step}")

    def wait(self) -> None:
        """Return when the last save is on disk.

        Raises:
            SaveError: the disk did not take it.
        """
        with self._disk_errors():
            self._manager.wait_until_finished()

    def delete_from(self, step: int) -> None:
        """Delete the checkpoints of `step` and of all later steps."""
        self.wait()
        for saved in self.steps():
            if saved >= step:
                self._manager.delete(saved)

    def meta(self, step: int) -> dict:
        """The JSON record of a checkpoint.

        Raises:
            DamagedError: it is missing or broken.
        """
        try:
            return read_json(self.folder / str(step) / META / "metadata")
        except (FileNotFoundError, ValueError) as error:
            raise DamagedError(f"{self.folder}/{step} is damaged: {error}") from None

    def restore(self, step: int, like: dict) -> dict:
        """The items of a checkpoint. Where they cannot be loaded though the files are
        what was saved, the error goes up as it is: memory is short, say.

        Args:
            like: name -> pytree of arrays or `jax.ShapeDtypeStruct`s with shardings:
                the structure, dtypes and shardings to restore into.

        Raises:
            ValueError: names or shapes differ from what was saved.
            DamagedError: files are not what was saved.
        """
        wanted = {k: flatten(v) for k, v in like.items()}
        self._check(step, wanted)
        arguments = ocp.args.Composite(
            **{
                k: ocp.args.StandardRestore(jax.tree.map(_abstract, v))
                for k, v in wanted.items()
            }
        )
        try:
            restored = self._manager.restore(step, args=arguments)
        except Exception as error:
            damage = _damage(self.folder / str(step))
            if damage:
                raise DamagedError(
                    f"{self.folder}/{step} is damaged: {damage}."
                ) from error
            error.add_note(f"{self.folder}/{step} is whole, but was not loaded here.")
            raise
        return {name: unflatten(restored[name], like[name]) for name in like}

    def close(self) -> None:
        self.wait()
        self._manager.close()
        if self._keep is None:
            return
        _open.discard(self)
        preemption.wait_for_step(False)
        if preemption.asked():
            raise preemption.Preempted(f"all of {self.folder} is saved")

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        """Which checkpoints stay, the newest and the best: orbax asks its policy so."""
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = steps[-self._keep :]
        if self._best:
            kept += self._best_of(steps)[:1]
        return [step in kept for step in steps]

    def _best_of(self, steps: list[int]) -> list[int]:
        """The steps that have a score, the highest first, of equal ones the earliest.
        One whose record is damaged has none."""
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
        """Called in the background when all is written, before the folder gets its
        name."""
        if jax.process_index() == 0:
            (unnamed,) = self.folder.glob(f"{self._saving}.*tmp*")
            checksums.write(unnamed)

    def _set_aside(self, steps: list[int]) -> None:
        """Out of the way of the next saves of these steps, but not lost."""
        for step in steps:
            first_does(_rename_damaged, self.folder / str(step))
        self._manager.reload()

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        """Turns what a disk did not allow, in whichever words it comes, into one clear
        error; after any there is no save to wait for."""
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
    """Whether a workdir holds a complete checkpoint."""
    folder = Path(workdir) / "checkpoints"
    return folder.is_dir() and any(entry.name.isdigit() for entry in folder.iterdir())


def _abstract(x) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None))


def _name_mismatch(expected: set, found: set) -> str:
    return (
        "parameter names differ.\n"
        f"  missing: {json.dumps(sorted(expected - found), indent=2)}\n"
        f"  not expected: {json.dumps(sorted(found - expected), indent=2)}"
    )


def _damage(folder: Path, item: str = "") -> str:
    """What is wrong with a checkpoint, or with one of its items; "" where nothing is.
    Process 0 finds it for all: they must use the same files."""
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
    """What is wrong with a checkpoint that has no checksums: nothing where its record
    is whole and does not speak of any, as records of version 0.1 do not."""
    try:
        record = read_json(folder / META / "metadata")
    except (FileNotFoundError, ValueError):
        return f"{checksums.FILE} and {META}/metadata cannot be read"
    return f"{checksums.FILE} is missing" if "checksums" in record else ""
