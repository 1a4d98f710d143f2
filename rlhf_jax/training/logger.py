"""A second writer of a run's metrics: Weights & Biases, or trackio.

Both packages have the same functions and are no dependencies of this project. Their own
settings come from the environment: WANDB_MODE=offline writes to the workdir alone.
"""

import hashlib
import importlib
import importlib.util
from pathlib import Path

from rlhf_jax.files import read_json

PROJECT = "rlhf_jax"
LOGGERS = ("wandb", "trackio")


def check(name: str) -> None:
    """Refuse a logger whose package is not installed; "" is none.

    Raises:
        ValueError: says how to install it.
    """
    if not name:
        return
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:  # a folder wandb/ of runs is no package
        raise ValueError(
            f"config.logger={name!r} needs a package that is not installed: pip install"
            f" {name}, or leave config.logger empty."
        )


class Logger:
    """The metrics of one run, in process 0. A run that resumes goes on in the same
    record.

    Raises:
        ValueError: the service refuses the run, for example without an API key.
    """

    def __init__(self, name: str, workdir: Path):
        self._package = importlib.import_module(name)
        record = workdir / "config.json"
        options = {
            "project": PROJECT,
            "name": workdir.name,
            "config": read_json(record)["config"] if record.is_file() else {},
            "resume": "allow",
        }
        if name == "wandb":  # trackio finds a run by its name
            digest = hashlib.sha256(str(workdir.absolute()).encode()).hexdigest()
            options |= {"dir": str(workdir), "id": digest[:16]}
        try:
            self._package.init(**options)
        except Exception as error:
            said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise ValueError(
                f"config.logger={name!r} cannot start: {said}. Set it up (wandb login, "
                "or WANDB_MODE=offline), or leave config.logger empty."
            ) from None

    def add(self, step: int, numbers: dict[str, float]) -> None:
        self._package.log(numbers, step=step)

    def close(self) -> None:
        self._package.finish()
