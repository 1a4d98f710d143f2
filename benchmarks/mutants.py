"""Mutation testing: does some test fail when a formula is changed?

python -m benchmarks.mutants [--files=rlhf_jax/losses/kl.py,...] [--sample=40]

Every mutant is one small change (an operator, a comparison, a number, a sign, min for
max) of one file, run against that file's own tests, all in one process: what mutants
have in common is imported and compiled once. Prints the survivors as lines for
docs/mutants.md.
"""

import argparse
import ast
import contextlib
import copy
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import Phase
from hypothesis import settings as hypothesis_settings

ROOT = Path(__file__).parents[1]
FILES = {  # file -> its quick tests
    "rlhf_jax/losses/masked.py": ["tests/losses/test_masked.py"],
    "rlhf_jax/losses/kl.py": ["tests/losses/test_kl.py"],
    "rlhf_jax/losses/advantages.py": ["tests/losses/test_advantages.py"],
    "rlhf_jax/losses/ppo.py": ["tests/losses/test_ppo.py"],
    "rlhf_jax/losses/dpo.py": ["tests/losses/test_dpo.py"],
    "rlhf_jax/losses/reward.py": ["tests/losses/test_reward.py"],
    "rlhf_jax/losses/sft.py": ["tests/losses/test_sft.py"],
    "rlhf_jax/losses/logprobs.py": ["tests/losses/test_logprobs.py"],
    "rlhf_jax/data/cleaning/filters.py": ["tests/data/cleaning/test_filters.py"],
    "rlhf_jax/data/cleaning/length_balance.py": [
        "tests/data/cleaning/test_length_balance.py"
    ],
    "rlhf_jax/generation/sampling.py": ["tests/generation/test_sampling.py"],
}
SECONDS = 120  # of the processor; a mutant that takes longer counts as found

SWAPS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Pow: ast.Mult,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
NAMES = {"maximum": "minimum", "minimum": "maximum", "max": "min", "min": "max"}


def mutants(source: str) -> Iterator[tuple[int, str, ast.Module]]:
    """(line, what was changed, the changed module) of every mutant."""
    tree = ast.parse(source)
    count = len(list(_places(tree)))
    for i in range(count):
        changed = copy.deepcopy(tree)
        line, change, apply = list(_places(changed))[i]
        apply()
        yield line, change, ast.fix_missing_locations(changed)


def _places(tree: ast.AST) -> Iterator[tuple[int, str, Callable]]:
    """(line, change, function that makes it) for every place that can be changed."""
    for node in _code(tree):
        if isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign):
            other = SWAPS.get(type(node.op))
            if other:
                yield _change(node, "op", other(), type(node.op).__name__)
        elif isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
            other = SWAPS[type(node.ops[0])]()
            name = type(node.ops[0]).__name__
            yield _change(node, "ops", [other, *node.ops[1:]], name)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            yield _change(node, "op", ast.UAdd(), "minus sign")
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert):
            yield _change(node, "operand", ast.UnaryOp(ast.Invert(), node.operand), "~")
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
            yield _change(node, "value", not node.value, str(node.value))
        elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            yield _change(node, "value", node.value + 1, str(node.value))
        elif isinstance(node, ast.Attribute) and node.attr in NAMES:
            yield _change(node, "attr", NAMES[node.attr], node.attr)


def _change(node, field: str, value, what: str) -> tuple[int, str, Callable]:
    shown = value[0] if isinstance(value, list) else value
    shown = type(shown).__name__ if isinstance(shown, ast.AST) else shown
    return node.lineno, f"{what} -> {shown}", lambda: setattr(node, field, value)


def _code(node: ast.AST) -> Iterator[ast.AST]:
    """Every node but those of annotations."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield child
                yield from _code(child)


def survives(copy_of_root: Path, file: str, source: str) -> bool:
    """Whether all of a file's tests pass with another source."""
    (copy_of_root / file).write_text(source)
    for name in list(sys.modules):
        if name.split(".")[0] in ("rlhf_jax", "tests") and name != "tests.conftest":
            del sys.modules[name]
    flags = ["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-profile=mutants"]
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        with (
            open(os.devnull, "w") as silence,
            contextlib.redirect_stdout(silence),
            contextlib.redirect_stderr(silence),
        ):
            return pytest.main([*flags, *FILES[file]]) == 0
    except TimeoutError:
        return False
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def time_is_up(*_):
    raise TimeoutError("The mutant's time is up.")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", default=",".join(FILES))
    parser.add_argument("--sample", type=int, default=0, help="of a file; 0: all")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(folder) / "copy"
        unwanted = shutil.ignore_patterns(".*", "__pycache__", "runs", "results")
        shutil.copytree(ROOT, copied, ignore=unwanted)
        os.chdir(copied)
        sys.path.insert(0, str(copied))
        for file in arguments.files.split(","):
            test(copied, file, arguments.sample)


def test(copied: Path, file: str, sample: int) -> None:
    """Try a file's mutants and print what no test finds."""
    source = (ROOT / file).read_text()
    if not survives(copied, file, source):
        raise SystemExit(f"{file}: its tests fail without any change.")
    found = list(mutants(source))
    if 0 < sample < len(found):
        found = random.Random(0).sample(found, sample)
    alive = 0
    for line, change, tree in sorted(found, key=lambda mutant: mutant[0]):
        if survives(copied, file, ast.unparse(tree)):
            alive += 1
            text = source.splitlines()[line - 1].strip()
            print(f"| `{file}:{line}` | `{text}` | {change} | |", flush=True)
    if not survives(copied, file, source):
        raise SystemExit(f"{file}: the mutants left something behind that fails.")
    print(f"{file}: {len(found) - alive} of {len(found)} found", flush=True)


if __name__ == "__main__":
    sys.dont_write_bytecode = True  # a mutant's would be taken for the next one's
    signal.signal(signal.SIGPROF, time_is_up)
    # The same examples for every mutant, and no time spent on making them small.
    hypothesis_settings.register_profile(
        "mutants",
        database=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
    )
    main()
