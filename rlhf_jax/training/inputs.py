"""The inputs of a run: equal in all its processes, and unchanged when it resumes.

Data, tokenizers and start checkpoints lie outside the run's folder and can change while
the run is stopped, or differ between machines. `workdir/inputs.json` holds their
fingerprints.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from absl import logging

from rlhf_jax.files import read_json, write_json
from rlhf_jax.shared_work import exchange, first_does
from rlhf_jax.training import checksums
from rlhf_jax.training.checkpoints import Checkpoints, has_checkpoint, workdir_of
from rlhf_jax.training.workdir import (
    config_differences,
    refuse_difference,
    results,
    versions,
)

FILE = "inputs.json"
SAMPLED = 1 << 20  # bytes read at either end of a file of weights


def agree(
    workdir: Path,
    files: Mapping[str, str],
    *,
    tokenizer: str,
    models: Iterable[str],
    may_change: Mapping[str, str] | None = None,
) -> None:
    """Refuse inputs that differ between the run's processes, or from those that the run
    began with. Call it before the first step, when all inputs are read.

    Args:
        files: file -> fingerprint.
        tokenizer: the fingerprint of the run's tokenizer; "" without a tokenizer.
        models: the workdirs and Hugging Face folders that the run starts from.
        may_change: file -> the fingerprint from which this file may change once,
            because it was at fault when the run stopped.

    Raises:
        ValueError: names the process, or the changed input, and says what to do.
    """
    workdir = Path(workdir).absolute()
    record = {
        "files": {_from_inside(workdir, name): x for name, x in files.items()},
        "tokenizer": tokenizer,
        "models": {name: fingerprint(name) for name in models if name},
    }
    refuse_difference(exchange(record))
    mended = {_from_inside(workdir, k): x for k, x in (may_change or {}).items()}
    first_does(_keep, workdir, record, mended)


def _from_inside(workdir: Path, file: str) -> str:
    """A file's name, which stays the same where it moves with the folder."""
    path = Path(file).absolute()
    return str(path.relative_to(workdir)) if path.is_relative_to(workdir) else file


def _keep(workdir: Path, record: dict, may_change: dict[str, str]) -> None:
    """Compare the inputs with inputs.json if the run has results; else write it."""
    path = workdir / FILE
    before = None
    if results(workdir) and path.is_file():
        before = read_json(path)
    if before is None:
        write_json(path, record | {"versions": versions()})
        return
    if not record.keys() <= before.keys():
        raise ValueError(f"{path} is damaged: it has no {', '.join(record)}.")
    changed = [
        name
        for kind in ("files", "models")
        for name in before[kind].keys() | record[kind].keys()
        if before[kind].get(name) != record[kind].get(name)
    ]
    mended = [x for x in changed if before["files"].get(x) == may_change.get(x, "")]
    changed = [name for name in changed if name not in mended]
    if before["tokenizer"] != record["tokenizer"]:
        changed.append("the tokenizer")
    if changed:
        raise ValueError(
            f"{workdir} began with other inputs; these have changed since: "
            f"{', '.join(sorted(changed))}. Restore them, or start anew in another "
            "--workdir."
        )
    if mended:
        logging.info("%s goes on with the changed %s.", workdir, ", ".join(mended))
        write_json(path, before | {"files": record["files"]})
    differences = config_differences(before.get("versions", {}), versions())
    others = [f"{name} {there} -> {here}" for name, there, here in differences]
    if others:
        logging.warning(
            "%s began with other versions or settings: %s. The rest of the run may "
            "differ.",
            workdir,
            ", ".join(others),
        )


def fingerprint(model: str | Path) -> str:
    """Return a fingerprint of the weights in a workdir or a Hugging Face folder."""
    workdir, which = workdir_of(model)
    if not has_checkpoint(workdir):
        return _weights_files(Path(model))
    if which == "best":
        step = Checkpoints(workdir, keep=None).find(which)
    else:
        names = [path.name for path in (workdir / "checkpoints").iterdir()]
        step = which or max(int(name) for name in names if name.isdigit())
    file = workdir / "checkpoints" / str(step) / checksums.FILE
    sums = hashlib.sha256(file.read_bytes() if file.is_file() else b"")
    return f"step {step}, {sums.hexdigest()[:12]}"


def _weights_files(folder: Path) -> str:
    """Return the start of the SHA-256 of a folder's config and of the names, sizes and
    both ends of its weights: reading them whole would take as long as loading them."""
    digest = hashlib.sha256()
    files = [*folder.glob("*.safetensors"), *folder.glob("config.json")]
    for path in sorted(files):
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            digest.update(file.read(SAMPLED))
            file.seek(max(0, size - SAMPLED))
            digest.update(file.read())
    return digest.hexdigest()[:12]
