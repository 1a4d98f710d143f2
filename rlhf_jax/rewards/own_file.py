"""A reward function from a file of the user's own."""

import hashlib
import importlib.util
import traceback
from collections.abc import Callable
from pathlib import Path


def load(file: str, name: str) -> Callable:
    """Run a file and return its function.

    Raises:
        ValueError: the file ends in an error, or `name` is no function; names the line.
    """
    path = Path(file)
    # Two files of one name do not hide each other, or a module that is installed.
    digest = hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:12]
    spec = importlib.util.spec_from_file_location(f"rewards_{digest}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"config.rewards: {file} is not a file of Python.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        where = line_in(error, file)
        raise ValueError(
            f"config.rewards: {file} cannot be loaded: {type(error).__name__}: {error}"
            f"{where}."
        ) from None
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"config.rewards: {file}:{name} is not a function.")
    return function


def line_in(error: BaseException, file: str) -> str:
    """Return ", line N" for the last line of a file that an error went through, "" if
    it went through none."""
    here = Path(file).absolute()
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).absolute() == here
    ]
    return f" ({file}, line {lines[-1]})" if lines else ""


def content_hash(file: str) -> str:
    """Return the start of the SHA-256 of a file."""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]
