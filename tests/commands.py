"""The commands of launch/, as tests look at them: their modules, and their flags."""

import ast
import importlib.util
import re
import runpy
from pathlib import Path
from types import ModuleType

from rlhf_jax.launching import cli
from rlhf_jax.launching.jobs import Job
from rlhf_jax.training import options

ROOT = Path(__file__).parents[1]


def load_command(name: str) -> ModuleType:
    """The module of launch/NAME.py."""
    path = ROOT / "launch" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_flags(script: str, arguments: list[str]) -> None:
    """Every flag is one of the script, and the config takes every value."""
    sources = [
        ROOT / script,
        ROOT / "rlhf_jax" / "launching" / "cli.py",
        ROOT / "rlhf_jax" / "launching" / "processes.py",
    ]
    known = re.findall(
        r'(?:DEFINE_\w+\(|add_argument\()\s*"(?:--)?(\w[\w-]*)"',
        "".join(source.read_text() for source in sources),
    )
    values, overrides = {}, {}
    for argument in arguments:
        if not argument.startswith("--"):
            continue
        name, _, value = argument[2:].partition("=")
        if name.startswith("config."):
            overrides[name.removeprefix("config.")] = value
        else:
            assert name in [*known, "config", "help"], f"{script} has no flag --{name}"
            values[name] = value
    for flag in ("grid", "list", "set"):  # of launch/sweep.py
        for value in [a for a in arguments if a.startswith(f"--{flag}=config.")]:
            key, _, several = value.partition("=config.")[2].partition("=")
            overrides[key] = several.split(",")[0]
    if "config" not in values:
        assert not overrides
        return
    path = values["config"]
    cli.check_config_flags(
        ["", f"--config={ROOT / path}", *(f"--config.{key}=" for key in overrides)]
    )
    overrides = {key: typed(path, key, text) for key, text in overrides.items()}
    options.check(Job("", path, overrides, ROOT).resolve())


def typed(path: str, key: str, text: str):
    """A flag's text as the config's type."""
    file, _, preset = path.partition(":")
    config = runpy.run_path(str(ROOT / file))["get_config"](*[preset] * bool(preset))
    for part in key.split("."):
        config = config[part]
    if isinstance(config, str):
        return text
    value = ast.literal_eval(text)
    return float(value) if isinstance(config, float) else value
