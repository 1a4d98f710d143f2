"""docs/your_own_data.md, line by line: its files are written, its commands run, in the
smallest size."""

import itertools
import re
import shlex
from pathlib import Path

import pytest

from rlhf_jax.launching.jobs import Job
from rlhf_jax.launching.stage import run_stage
from rlhf_jax.training.workdir import read_summary
from tests.commands import typed

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "your_own_data.md").read_text(encoding="utf-8")
SMALL = {
    "batch_size": 8,  # of the eight devices of a test
    "epochs": 1,
    "max_prompt_tokens": 64,
    "max_response_tokens": 24,
    "microbatches": 1,
    "minibatches": 1,
    "model": "micro",
    "num_centring_pairs": 1,
    "num_samples": 1,
    "ppo_epochs": 1,
    "sft_batch_size": 8,
    "total_steps": 1,
    "validation_share": 0.5,
}


def blocks() -> list[tuple[str, str, str]]:
    """(language, the file named before, content) of each block."""
    parts = re.split(r"^```(.*)\n", PAGE, flags=re.MULTILINE)
    found = []
    for before, language, content in zip(
        parts[::4], parts[1::4], parts[2::4], strict=False
    ):
        names = re.findall(r"`([^`/ ]+\.(?:jsonl|csv))`", before)
        found.append((language, names[0] if names else "", content))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    for language, name, content in blocks():
        if language:
            (folder / name).write_text(content, encoding="utf-8")
    return folder


COMMANDS = [text.splitlines() for language, _, text in blocks() if not language]


@pytest.mark.parametrize("command", itertools.chain(*COMMANDS))
def test_the_page_runs(command, folder, monkeypatch):
    """In their order: later commands read what earlier ones left."""
    monkeypatch.chdir(folder)
    python, script, *arguments = shlex.split(command)
    assert python == "python" and (ROOT / script).is_file()
    values = dict(argument[2:].split("=", 1) for argument in arguments)
    config, workdir = values.pop("config"), values.pop("workdir")
    overrides = {
        key.removeprefix("config."): typed(config, key.removeprefix("config."), value)
        for key, value in values.items()
    }
    known = Job("", config, {}, Path(workdir)).resolve()
    small = {key: value for key, value in SMALL.items() if key in known}
    job = Job("", config, small | overrides, Path(workdir))
    run_stage(job.resolve(), folder / workdir)
    assert read_summary(folder / workdir)
