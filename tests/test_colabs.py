"""The notebooks: bare in git, and all but one run from top to bottom on a CPU."""

import ast
import json
import os
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "colabs"
EVERY = sorted(FOLDER.glob("*.ipynb"))
NEEDS_HARDWARE = ("4_chatglm_on_tpu",)


def code_cells(path: Path) -> list[dict]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", EVERY, ids=lambda path: path.stem)
def test_outputs_are_stripped(path):
    for cell in code_cells(path):
        assert not cell["outputs"] and cell["execution_count"] is None


@pytest.mark.parametrize("path", EVERY, ids=lambda path: path.stem)
def test_a_notebook_begins_by_installing_where_it_has_to(path):
    first = "".join(code_cells(path)[0]["source"])
    assert '"google.colab" in sys.modules' in first
    assert all(first == "".join(code_cells(other)[0]["source"]) for other in EVERY)


@pytest.mark.parametrize("path", EVERY, ids=lambda path: path.stem)
def test_what_a_notebook_imports_is_there(path):
    """Also of the one that needs hardware to run."""
    for cell in code_cells(path):
        # Lines of a notebook's own, such as %pip, are no Python.
        code = re.sub(r"^( *)[%!].*", r"\1pass", "".join(cell["source"]), flags=re.M)
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("rlhf_jax"):
                module = __import__(node.module, fromlist=["*"])
                for alias in node.names:
                    name = f"{node.module}.{alias.name}"
                    assert hasattr(module, alias.name) or __import__(name), name


def test_hardware_that_is_needed_is_named():
    for name in NEEDS_HARDWARE:
        text = (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
        assert "**Needs hardware**" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [path for path in EVERY if path.stem not in NEEDS_HARDWARE],
    ids=lambda path: path.stem,
)
def test_a_notebook_runs_from_top_to_bottom(path, tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    # The kernel is a process of its own: it has this one's environment alone.
    monkeypatch.setenv("RLHF_JAX_SMOKE", "1")
    monkeypatch.setenv("RLHF_JAX_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    cache = os.environ["RLHF_JAX_TEST_CACHE"]
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", cache)
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": FOLDER}},
    ).execute()
