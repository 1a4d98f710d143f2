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
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from rlhf_jax.training import checksums, preemption
from rlhf_jax.training.workdir import due

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


class DamagedError(ValueError):
    """A checkpoint's files are not what was saved."""


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
        self._reads_only, self._best = keep is None, best
        self._saving, self._stopping = 0, False
        policies = [checkpoint_managers.LatestN(keep)]
        if best:
            policies.append(checkpoint_managers.BestN(get_metric_fn=self._score, n=1))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
            best_fn=self._score if best else None,  # makes orbax record the number
            cleanup_tmp_directories=not self._reads_only,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._sign),
        )
        self._manager = ocp.CheckpointManager(str(self.folder), options=options)

    def latest_step(self) -> int:
        """The newest whole checkpoint's step; 0 when there is none at all. What is
        damaged is named in the log, and where this run writes, set aside.

        Raises:
            DamagedError: there are checkpoints, and none of them is whole.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            damage = _damage(self.folder / str(step))
            if not damage:
                return step
            logging.error("%s/%d is damaged, not used: %s.", self.folder, step, damage)
            if not self._reads_only:
                self._set_aside(step)
        if steps:
            raise DamagedError(
                f"No checkpoint in {self.folder} is whole: {damage}. Restore one from "
                "a copy, or delete the folder and start from nothing."
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
        steps = sorted(self._manager.all_steps())
        found = [step for step in steps if str(step) == which]
        if which == "best":
            scores = {step: self.meta(step).get("score") for step in steps}
            scored = [step for step in steps if scores[step] is not None]
            found = sorted(scored, key=scores.get, reverse=True)
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
        return self._stopping or due(step, every, total)

    def save(
        self, step: int, items: dict, meta: dict, numbers: dict | None = None
    ) -> None:
        """Start saving `items` (name -> pytree of arrays) and a JSON-able `meta`.

        Args:
            numbers: this step's, `best` perhaps among them.

        Raises:
            DiskFullError: this or the previous save found no space.
            Preempted: after the save, when SIGTERM has come.
        """
        flat = {name: flatten(item) for name, item in items.items()}
        shapes = {
            name: {k: list(x.shape) for k, x in item.items()}
            for name, item in flat.items()
        }
        arguments = {name: ocp.args.StandardSave(item) for name, item in flat.items()}
        score = self._score(numbers or {}) if self._best else -np.inf
        record = {"shapes": shapes, "score": score if np.isfinite(score) else None}
        arguments[META] = ocp.args.JsonSave(meta | record)
        self.wait()
        self._saving = step
        with _disk_errors(self.folder):
            self._manager.save(
                step,
                args=ocp.args.Composite(**arguments),
                metrics=numbers or {} if self._best else None,
            )
        if self._stopping:
            self.wait()
            raise preemption.Preempted(f"saved {self.folder}/{step}")

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
        with _read_errors(self.folder / str(step)):
            return self._manager.restore(step, args=arguments)[META]

    def restore(self, step: int, like: dict) -> dict:
        """The items of a checkpoint.

        Args:
            like: name -> pytree of arrays or `jax.ShapeDtypeStruct`s with shardings:
                the structure, dtypes and shardings to restore into.

        Raises:
            ValueError: names or shapes differ from what was saved.
            DamagedError: files are missing or broken.
        """
        wanted = {k: flatten(v) for k, v in like.items()}
        self._check(step, wanted)
        arguments = ocp.args.Composite(
            **{
                k: ocp.args.StandardRestore(jax.tree.map(_abstract, v))
                for k, v in wanted.items()
            }
        )
        with _read_errors(self.folder / str(step)):
            restored = self._manager.restore(step, args=arguments)
        return {name: unflatten(restored[name], like[name]) for name in like}

    def close(self) -> None:
        self.wait()
        self._manager.close()
        preemption.wait_for_step(False)
        if preemption.asked():
            raise preemption.Preempted(f"all of {self.folder} is saved")

    def _sign(self) -> None:
        """Called in the background when all is written, before the folder gets its
        name."""
        if jax.process_index() == 0:
            (unnamed,) = self.folder.glob(f"{self._saving}.*tmp*")
            checksums.write(unnamed)

    def _score(self, numbers: dict) -> float:
        value = numbers.get(self._best.removeprefix("-"), np.nan)
        score = -value if self._best.startswith("-") else value
        return score if np.isfinite(score) else -np.inf

    def _set_aside(self, step: int) -> None:
        """Out of the way of the next save of this step, but not lost."""
        if jax.process_index() == 0:
            damaged = self.folder / f"{step}.damaged"
            shutil.rmtree(damaged, ignore_errors=True)
            (self.folder / str(step)).rename(damaged)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoint set aside")
        self._manager.reload()

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


def _damage(folder: Path) -> str:
    """`checksums.damage`, found by process 0 for all: they must use the same files."""
    damage = checksums.damage(folder) if jax.process_index() == 0 else ""
    if jax.process_count() > 1 and multihost_utils.broadcast_one_to_all(bool(damage)):
        return damage or "process 0 says how"
    return damage


@contextlib.contextmanager
def _read_errors(folder: Path) -> Iterator[None]:
    """Whatever orbax says to files that it cannot read becomes one clear error."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DamagedError(
            f"{folder} cannot be read ({reason[0][:200]}). Delete it, and the "
            "checkpoint before it is used."
        ) from error


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Turns a full disk, in whichever words it comes, into one clear error."""
    try:
        yield
    except Exception as error:
        text = str(error)
        if "No space left" in text or "ENOSPC" in text or "RESOURCE_EXHAUSTED" in text:
            raise DiskFullError(
                f"No space left to save a checkpoint in {folder}. The last "
                "complete checkpoint is intact: free some space and start the same "
                "command again."
            ) from error
        raise
