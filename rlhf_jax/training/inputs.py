"""What a run has read: the same in all its processes, and the same when it goes on.

Data, tokenizers and start checkpoints lie outside the run's folder and can change while
the run stands still, or differ from machine to machine. Their fingerprints are kept in
`workdir/inputs.json`.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from absl import logging

from rlhf_jax.files import read_json, write_json
from rlhf_jax.shared_work import exchange, first_does
from rlhf_jax.training import checksums
from rlhf_jax.training.checkpoints import Checkpoints, has_checkpoint
from rlhf_jax.training.weights import workdir_of
from rlhf_jax.training.workdir import (
    config_differences,
    refuse_difference,
    results,
    versions,
)

FILE = "inputs.json"
SAMPLED = 1 << 20  # bytes at either end of a file of weights that are looked at


def agree(
    workdir: Path, files: Mapping[str, str], *, tokenizer: str, models: Iterable[str]
) -> None:
    """Refuse to go on where the run's processes have read different inputs, or other
    ones than the run began with. To be called before the first step, when all is read.

    Args:
        files: file -> fingerprint.
        tokenizer: the fingerprint of the run's tokenizer; "": it has none.
        models: the workdirs and Hugging Face folders that the run starts from.

    Raises:
        ValueError: names the process, or what has changed, and what to do.
    """
    record = {
        "files": dict(files),
        "tokenizer": tokenizer,
        "models": {name: fingerprint(name) for name in models if name},
    }
    refuse_difference(exchange(record))
    first_does(_keep, Path(workdir), record)


def _keep(workdir: Path, record: dict) -> None:
    """Compare with inputs.json where there are results; else write it."""
    path = workdir / FILE
    before = None
    if results(workdir) and path.is_file():
        before = read_json(path)
    if before is None:
        write_json(path, record | {"versions": versions()})
        return
    changed = [
        name
        for kind in ("files", "models")
        for name in before[kind].keys() & record[kind].keys()
        if before[kind][name] != record[kind][name]
    ]
    if before["tokenizer"] != record["tokenizer"]:
        changed.append("the tokenizer")
    if changed:
        raise ValueError(
            f"{workdir} began with other inputs; these have changed since: "
            f"{', '.join(sorted(changed))}. Restore them, or start anew in another "
            "--workdir."
        )
    differences = config_differences(before.get("versions", {}), versions())
    others = [f"{name} {there} -> {here}" for name, there, here in differences]
    if others:
        logging.warning(
            "%s began with other versions: %s. The rest of the run may differ.",
            workdir,
            ", ".join(others),
        )


def fingerprint(model: str | Path) -> str:
    """Which weights a workdir or a Hugging Face folder holds."""
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
    """SHA-256 of the names, the sizes and both ends of a folder's weights, and of its
    config: to read all of a large model would take as long as to load it."""
    found = hashlib.sha256()
    files = [*folder.glob("*.safetensors"), *folder.glob("config.json")]
    for path in sorted(files):
        size = path.stat().st_size
        found.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            found.update(file.read(SAMPLED))
            file.seek(max(0, size - SAMPLED))
            found.update(file.read())
    return found.hexdigest()[:12]
