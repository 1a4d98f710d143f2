"""Benchmarks by themselves, in their small."""

import importlib
import json
import sys

import pytest

# A command that needs no data -> its flags.
COMMANDS = {
    "generate": "--prompts=2 --prompt=8 --response=8 --lora_rank=2",
    "sft": "--rows=2 --length=16",
    "reward": "--pairs=2 --prompt=8 --response=8",
    "dpo": "--pairs=2 --prompt=8 --response=8",
    "ppo": "--prompts=2 --prompt=8 --response=8 --before",
    "packing": "--batches=1",
    "rollouts": "--prompts=4 --rows=2 --response=16",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_benchmark_runs_on_the_smallest_model(name, monkeypatch, capsys):
    command = importlib.import_module(f"benchmarks.{name}")
    flags = [name, "--model=micro", "--repeats=1", *COMMANDS[name].split()]
    monkeypatch.setattr(sys, "argv", flags)
    command.main()
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["model"] == "micro"
