"""The architecture as a test: which part of the package may import which."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "rlhf_jax"

ALLOWED = {
    "batches": set(),
    "files": set(),
    "losses": set(),
    "parallel": set(),
    "data": {"batches"},
    "models": {"parallel"},
    "generation": {"models", "losses", "parallel", "batches"},
    "training": {"generation", "models", "losses", "parallel", "batches"},
    "ppo": {
        "rewards",
        "generation",
        "training",
        "models",
        "losses",
        "data",
        "parallel",
        "batches",
    },
    "algorithms": {"ppo", "training", "models", "generation", "losses", "batches"},
    "evaluation": {
        "rewards",
        "generation",
        "training",
        "models",
        "losses",
        "data",
        "parallel",
        "batches",
    },
    "rewards": {"training", "data"},
    "planning": {
        "rewards",
        "algorithms",
        "ppo",
        "generation",
        "training",
        "models",
        "parallel",
        "batches",
    },
    "launching": {
        "stages",
        "planning",
        "rewards",
        "algorithms",
        "evaluation",
        "generation",
        "training",
        "models",
        "data",
        "parallel",
        "batches",
    },
    "stages": {
        "rewards",
        "algorithms",
        "ppo",
        "evaluation",
        "generation",
        "training",
        "models",
        "losses",
        "data",
        "parallel",
        "batches",
    },
}
EVERYWHERE = {"files", "shared_work", "terminal"}  # that every part may import
OUTSIDE = {"configs", "launch", "colabs", "tests", "benchmarks"}

FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(parts: tuple[str, ...]) -> str:
    return parts[0].removesuffix(".py")


def imports_of(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: use absolute imports."
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    room = room_of(path.relative_to(PACKAGE).parts)
    allowed = ALLOWED.get(room, set())
    for name in imports_of(path):
        top, *rest = name.split(".")
        assert top not in OUTSIDE, f"{path}: the package never imports {top}/."
        if top != "rlhf_jax" or rest in ([], ["__version__"]):
            continue
        target = rest[0]
        if target in EVERYWHERE:
            continue
        assert target in ALLOWED, f"{path}: unknown part of the package, {name}."
        if target == room:
            assert room != "stages", f"{path}: a stage never imports a stage."
            continue
        assert target in allowed, f"{path}: {room} may not import {target}."
