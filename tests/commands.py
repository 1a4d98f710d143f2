"""The command scripts of launch/ that a test looks into: nothing else imports them."""

import importlib.util
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]


def load_command(name: str) -> ModuleType:
    """The module of launch/NAME.py."""
    path = ROOT / "launch" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
