"""The summary that a selection of prompts leaves to the runs that use the prompts."""

from pathlib import Path

from rlhf_jax.files import read_json
from rlhf_jax.shared_work import first_does


def summary_of_selection(folder: str | Path) -> dict | None:
    """Return the summary of a finished selection; None where the folder holds none.
    Process 0 reads."""
    return first_does(_summary, Path(folder))


def _summary(folder: Path) -> dict | None:
    config, summary = folder / "config.json", folder / "summary.json"
    if not (config.is_file() and summary.is_file()):
        return None
    stage = read_json(config).get("config", {}).get("stage")
    return read_json(summary) if stage == "select_prompts" else None
