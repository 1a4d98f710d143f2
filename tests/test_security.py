"""Files of data and weights can be read, and do nothing else."""

import ast
import importlib
from pathlib import Path

import pytest

from rlhf_jax.training import options

ROOT = Path(__file__).parents[1]
FILES = sorted(
    path
    for part in ("rlhf_jax", "launch", "configs")
    for path in (ROOT / part).rglob("*.py")
)

# Calls that run or unpickle what they are given, whatever module they come from.
FORBIDDEN = {
    "eval", "exec", "compile", "__import__", "system", "popen", "unpack_archive",
    "extractall", "extract", "pickle.load", "pickle.loads", "dill.load", "dill.loads",
    "joblib.load", "marshal.loads", "shelve.open", "torch.load", "yaml.load",
    "yaml.unsafe_load", "jsonpickle.decode", "read_pickle",
}  # fmt: skip
MODULES = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "torch"}
# Arguments that make a reader safe; a call without them is refused.
DEMANDED = {
    "np.load": ("allow_pickle", False),
    "AutoTokenizer.from_pretrained": ("trust_remote_code", False),
}
# Arguments that make one dangerous.
REFUSED = {"trust_remote_code": True, "allow_pickle": True, "shell": True}


def calls(path: Path):
    """(line, "module.function" or "function", constant keyword arguments)."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            arguments = {
                k.arg: k.value.value
                for k in node.keywords
                if isinstance(k.value, ast.Constant)
            }
            yield node.lineno, ast.unparse(node.func), arguments


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_is_read_is_run(path):
    for line, name, arguments in calls(path):
        where = f"{path.relative_to(ROOT)}:{line}: {name}"
        function = name.rpartition(".")[2]
        plain = name == function or function not in ("compile", "extract")
        assert not (plain and {name, function} & FORBIDDEN), where
        for call, (argument, value) in DEMANDED.items():
            if name == call:
                assert arguments.get(argument) is value, f"{where} lacks {argument}"
        for argument, value in REFUSED.items():
            assert arguments.get(argument) is not value, f"{where}: {argument}"
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        assert not {name.partition(".")[0] for name in names} & MODULES, path


def test_the_reader_of_data_sets_knows_no_pickles():
    """The endings of a folder's files decide how `datasets` reads it."""
    found = importlib.import_module("datasets.packaged_modules")._EXTENSION_TO_MODULE
    assert not {".pkl", ".pickle", ".py", ".pt"} & found.keys()


def test_no_config_holds_a_secret():
    """config.json is written down and passed on: of a key it has a variable's name."""
    for path in (ROOT / "configs").glob("*.py"):
        if path.stem == "common":
            continue
        config = importlib.import_module(f"configs.{path.stem}").get_config()
        for key, _ in options.leaves(config, path.stem):
            name = key.rpartition(".")[2]
            assert not name.endswith(("_key", "password", "_token", "secret")), key
