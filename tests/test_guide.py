"""The guide's commands, one after another in the small: each uses what the ones before
have left, and ends with a command that can be run."""

import re
import shlex
import sys
from pathlib import Path

import jax
from absl import logging

from rlhf_jax.evaluation.report.page import write_report
from rlhf_jax.launching import closing, stage
from rlhf_jax.launching.chat import open_checkpoint
from rlhf_jax.launching.jobs import Job
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.training.workdir import read_summary
from tests.commands import check_flags, typed
from tests.reliability.smallest import BATCH_SIZES, SMALL

GUIDE = Path(__file__).parents[1] / "docs" / "guide.md"
TESTBED = {
    "num_sft": 64,
    "num_sft_test": 8,
    "num_comparison_prompts": 64,
    "num_rl_prompts": 24,
    "num_eval_prompts": 16,
    "num_probes": 4,
}


def commands() -> list[dict[str, str]]:
    """The flags of each command of the first block, in order."""
    block = GUIDE.read_text().split("```")[1]
    return [
        dict(word[2:].split("=", 1) for word in shlex.split(line) if word[:2] == "--")
        for line in block.strip().splitlines()
    ]


def paths_of(flags: dict[str, str]) -> list[str]:
    """Return the paths in runs/ that a command reads."""
    named = [value for key, value in flags.items() if key.startswith("config.")]
    return re.findall(r"runs/[\w/.-]+", " ".join(named))


def small(flags: dict[str, str], runs: Path):
    """The config of a command, cut down, with its folders in `runs`."""
    path, overrides = flags["config"], {}
    for name, text in flags.items():
        if name.startswith("config."):
            key = name.removeprefix("config.")
            overrides[key] = typed(path, key, text.replace("runs/", f"{runs}/"))
    config = Job("", path, overrides, runs).resolve()
    config.update({key: x for key, x in SMALL.items() if key in config})
    if "batch_size" in config:
        config.batch_size = BATCH_SIZES.get(config.stage, 16)
    for limit in ("max_tokens", "max_sft_tokens", "max_prompt_tokens"):
        if limit in config:
            config[limit] = 192
    if "pad_to_multiple" in config:
        config.pad_to_multiple = 64
    if config.stage in ("reward", "dpo"):
        config.max_response_tokens = 64
    if "mesh" in config:
        config.mesh = (1, 1, 1)
    if "data" in config:
        config.data.vocab_size = 400
        config.data.testbed.update(TESTBED)
    return config


def test_no_command_leaves_what_none_uses():
    *made, last = [flags["workdir"] for flags in commands()]
    used = {path for flags in commands() for path in paths_of(flags)}
    for folder in made:
        assert any(path.startswith(folder) for path in used), folder
    assert last not in used


def test_the_commands_run_in_their_order(tmp_path, monkeypatch, capsys):
    logged = []

    def info(text, *args):
        if sys._getframe(1).f_globals["__name__"].startswith("rlhf_jax"):
            logged.append(text % args)

    monkeypatch.setattr(logging, "info", info)
    monkeypatch.chdir(tmp_path)
    one = make_mesh((1, 1, 1), jax.devices()[:1])
    monkeypatch.setattr(stage, "make_mesh", lambda sizes: one)
    for flags in commands():
        for path in paths_of(flags):
            assert (tmp_path / path.removeprefix("runs/")).exists(), path
        config = small(flags, tmp_path)
        folder = tmp_path / flags["workdir"].removeprefix("runs/")
        stage.run_stage(config, folder)
        following = closing.next_command(config, folder, "tiny", {})
        words = shlex.split(following.replace("\\\n", " "))
        check_flags(words[1], words[2:])
    shown = capsys.readouterr().out
    for said in (
        "sft: held-out loss",
        "collect: ",
        "reward: agrees with",
        "evaluate: ",
    ):
        assert f"\n{said}" in f"\n{shown}", said
    for text in (shown, *logged):
        assert "{'" not in text and "Counter(" not in text
    models = read_summary(tmp_path / "evaluate")["models"]
    assert set(models) == {"sft", "ppo", "dpo"}
    cleaned = (tmp_path / "prepared" / "comparisons.jsonl").read_text().splitlines()
    pairs = read_summary(tmp_path / "reward")["pairs"]
    assert 0 < pairs["train"] + pairs["validation"] <= len(cleaned)
    open_checkpoint(tmp_path / "ppo")
    page = write_report([str(tmp_path)], None, form="html", title="")
    assert "<h2>Models</h2>" in page


def test_the_showcase_is_greedy():
    (line,) = re.findall(
        r"^python launch/generate.py .*--prompt.*$", GUIDE.read_text(), re.M
    )
    assert "--temperature=0" in line
