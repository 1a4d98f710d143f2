"""Files appear whole or not at all, and errors say what a disk did not allow."""

import ast
import errno
import os
from pathlib import Path

import numpy as np
import pytest

from rlhf_jax import files


def test_a_file_gets_its_name_when_it_is_whole(tmp_path):
    path = tmp_path / "folder" / "a.txt"
    with files.writing_whole(path) as file:
        file.write("glück")
        file.flush()
        assert not path.exists()
    assert path.read_text(encoding="utf-8") == "glück"
    assert os.listdir(path.parent) == ["a.txt"]


def test_after_an_error_there_is_what_was_there_before(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "before")
    with pytest.raises(KeyboardInterrupt), files.writing_whole(path) as file:
        file.write("after")
        raise KeyboardInterrupt
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    ("number", "is_named"),
    [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.ECONNRESET, False)],
)
def test_what_the_disk_refused_names_the_file(number, is_named, tmp_path):
    path = tmp_path / "a.txt"
    with pytest.raises(OSError) as caught, files.writing_whole(path):
        raise OSError(number, os.strerror(number))
    assert (str(path) in str(caught.value)) == is_named


@pytest.mark.parametrize("read", [files.read_json, files.read_arrays])
def test_what_the_disk_does_not_give_names_the_file(read, tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    path = tmp_path / "a.npz"
    files.write_arrays(path, {"a": np.ones(3)})
    monkeypatch.setattr("pathlib.Path.read_bytes", broken)
    monkeypatch.setattr("zipfile.ZipFile.testzip", broken)
    with pytest.raises(OSError, match=rf"Input/output error: .*{path}"):
        read(path)


TENSORSTORE = (
    "RESOURCE_EXHAUSTED: Error writing ...: Failed to write 177 bytes to file 22: "
    "No space left on device [tensorstore_spec='{}'] [os_error_code='28']"
)


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (OSError(errno.ENOSPC, "x"), "No space left"),
        (ValueError(TENSORSTORE), "No space left"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "No space"),
        (OSError("[Errno 122] Disk quota exceeded"), "quota"),
        (OSError(errno.EMFILE, "x"), "Too many open files"),
        (OSError(errno.EIO, "x"), "The disk fails"),
        (OSError(errno.EROFS, "x"), "read-only"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"), None),
        (FileNotFoundError(errno.ENOENT, "x"), None),
        (ValueError("28"), None),
    ],
)
def test_errors_of_the_disk_are_told_apart(error, what):
    found = files.disk_trouble(error)
    assert found is None if what is None else what in found[0]


def test_the_disk_is_seen_behind_a_librarys_own_error():
    with pytest.raises(RuntimeError) as caught:
        try:
            raise OSError(errno.ENOSPC, "x")
        except OSError as error:
            raise RuntimeError("it failed") from error
    assert files.disk_trouble(caught.value)[1] == "free some space"


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "null", "\xff", "[" * 100_000])
def test_what_is_no_json_object_is_named(text, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.json is damaged"):
        files.read_json(path)


def test_an_object_comes_back(tmp_path):
    files.write_json(tmp_path / "a.json", {"a": ["好"]})
    assert files.read_json(tmp_path / "a.json") == {"a": ["好"]}


def test_of_several_processes_the_first_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "is_first", lambda: False)
    files.write_text(tmp_path / "x" / "y.txt", "text")
    assert not (tmp_path / "x").exists()
    monkeypatch.setattr(files, "is_first", lambda: True)
    files.write_text(tmp_path / "x" / "y.txt", "text")
    assert (tmp_path / "x" / "y.txt").read_text() == "text"


PACKAGE = Path(files.__file__).parent
ROOMS = ("stages", "evaluation", "training", "algorithms", "ppo")
APPENDED = {"training/metrics.py": 1}  # by process 0, line by line


def writes(path: Path) -> int:
    """How many calls in a file write to a path, not to a file of `writing_whole`."""
    found = 0
    for node in ast.walk(ast.parse(path.read_text())):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        name = node.func.attr
        modes = [x.value for x in node.args if isinstance(x, ast.Constant)]
        of_path = name in ("write_text", "write_bytes", "savez")
        opened = name == "open" and any(str(mode)[:1] in "wax" for mode in modes)
        plotted = name == "savefig" and ast.unparse(node.args[0]) == "path"
        found += of_path or opened or plotted
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_what_stages_write_appears_whole_and_once(room):
    """Several processes run the same stage: only `files` knows which one writes."""
    for path in (PACKAGE / room).rglob("*.py"):
        name = str(path.relative_to(PACKAGE))
        assert writes(path) == APPENDED.get(name, 0), name
