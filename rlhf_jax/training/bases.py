"""The base under the adapters of a checkpoint: where it is, and that it is the one that
they were trained on."""

import os
from pathlib import Path

from absl import logging

from rlhf_jax.models import peft_adapters
from rlhf_jax.training.checkpoints import Checkpoints, has_checkpoint, workdir_of
from rlhf_jax.training.inputs import fingerprint


def describe(folder: str | os.PathLike, workdir: Path) -> dict[str, str]:
    """Return the record of a base for the checkpoints of `workdir`: its folder, also as
    seen from `workdir`, so that both can move together, and its fingerprint. The newest
    checkpoint of a run is recorded by its step."""
    run, which = workdir_of(Path(folder).absolute())
    if has_checkpoint(run):
        run = run / "checkpoints" / str(Checkpoints(run, keep=None).find(which))
    return {
        "folder": str(run),
        "from_workdir": os.path.relpath(run, Path(workdir).absolute()),
        "fingerprint": fingerprint(run),
    }


def find(record: dict[str, str], workdir: Path) -> Path:
    """Return the folder of the base that `describe` recorded.

    Raises:
        FileNotFoundError: the base is not there.
        ValueError: another model is there.
    """
    wanted = record["fingerprint"]
    places = [Path(record["folder"]), Path(workdir) / record["from_workdir"]]
    there = [place for place in places if place.is_dir()]
    for place in there:
        if fingerprint(place) == wanted:
            return place
    if there:
        raise ValueError(
            f"The adapters of {workdir} were trained on the base {record['folder']} "
            f"({wanted}), and {there[0]} is another model ({fingerprint(there[0])}): "
            "put the base back there."
        )
    raise FileNotFoundError(
        f"The adapters of {workdir} need their base, which is not there: put the model "
        f"{record['folder']} ({wanted}) back."
    )


def find_named(adapter: Path, given: Path | None = None) -> Path:
    """Return the folder of the base that an adapter in PEFT's layout names.

    Args:
        given: the folder to take in place of the named one, which may be a name at a
            hub of models, or have moved.

    Raises:
        FileNotFoundError: the base is not there.
        ValueError: another model is there, or the named folder holds another model
            than `given`.
    """
    name, wanted = peft_adapters.base_of(adapter)
    named = [place for place in (Path(name), adapter / name) if place.is_dir()]
    place = given or next(iter(named), None)
    config = adapter / peft_adapters.CONFIG
    if place is None:
        raise FileNotFoundError(
            f"The base {name!r} of {config} is not a folder here: get that model, and "
            "write its folder there as base_model_name_or_path, or convert the adapter "
            "with launch/convert.py --base=FOLDER."
        )
    if not place.is_dir():
        raise FileNotFoundError(f"The base {place} is not there.")
    actual = fingerprint(place)
    wanted = wanted or (fingerprint(named[0]) if named else "")
    if wanted and wanted != actual:
        raise ValueError(
            f"The adapter {adapter} was trained on the base {name!r} ({wanted}), and "
            f"{place} is another model ({actual}): name the right one."
        )
    if not wanted and Path(name).name not in str(place):
        logging.warning(
            "%s names the base %r; %s is taken, and must be that model.",
            config,
            name,
            place,
        )
    return place
