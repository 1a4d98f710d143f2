"""The rewards that `config.rewards` names, with their weights.

"model=1.0,my_rewards.py:is_right=2.0,length_penalty=0.1": the reward model, a function
of a file, and a built-in function. Nothing is loaded here; a file is parsed, not run.
"""

import ast
import math
from pathlib import Path
from typing import NamedTuple

from rlhf_jax.rewards.built_in import BUILT_IN

MODEL = "model"  # the name of the reward model


class Named(NamedTuple):
    """A reward by name; `file` is "" except for a function of a file."""

    name: str
    weight: float
    file: str = ""

    @property
    def place(self) -> str:
        """The reward as `config.rewards` writes it."""
        return f"{self.file}:{self.name}" if self.file else self.name


def parse(text: str) -> tuple[Named, ...]:
    """Parse `config.rewards`.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a name or a weight is wrong; the message lists the names that exist.
    """
    rewards = [_parse_one(part.strip()) for part in text.split(",") if part.strip()]
    if not rewards:
        raise ValueError(
            'config.rewards is empty: name rewards with their weights, as in "model=1.0'
            f'" or "right_number=1.0,length_penalty=0.1". {_known()}'
        )
    names = [reward.name for reward in rewards]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"config.rewards: two rewards are called {name!r}: leave one out, or "
                "rename one."
            )
    return tuple(rewards)


def uses_model(text: str) -> bool:
    """Return True if `config.rewards` names the reward model."""
    names = (part.partition("=")[0].strip() for part in text.split(","))
    return MODEL in names


def _parse_one(part: str) -> Named:
    place, equals, number = part.rpartition("=")
    if not equals:
        raise ValueError(f"config.rewards: {part!r} has no weight: write {part}=1.0.")
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise ValueError(
            f"config.rewards: the weight of {place!r} must be a number, not {number!r}."
        )
    if ":" in place or place.endswith(".py"):
        file, _, name = place.rpartition(":") if ":" in place else (place, "", "")
        _check_function(file, name)
        return Named(name, weight, file)
    if place not in (MODEL, *BUILT_IN):
        raise ValueError(f"config.rewards: there is no reward {place!r}. {_known()}")
    return Named(place, weight)


def _known() -> str:
    return (
        f"There are: {MODEL}, {', '.join(BUILT_IN)}; FILE.py:FUNCTION names a function "
        "of your own."
    )


def _check_function(file: str, name: str) -> None:
    """Refuse a file without this function, by its text alone."""
    if not Path(file).is_file():
        raise FileNotFoundError(f"config.rewards: there is no file {file}.")
    try:
        tree = ast.parse(Path(file).read_bytes())
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise ValueError(
            f"config.rewards: {file}{line} is not Python: {error}"
        ) from None
    names = {x for node in tree.body for x in _defined(node)}
    if name not in names:
        functions = [x.name for x in tree.body if isinstance(x, ast.FunctionDef)]
        raise ValueError(
            f"config.rewards: {file} has no function {name!r}; it has: "
            f"{', '.join(functions) or 'none'}. Write {file}:FUNCTION=WEIGHT."
        )


def _defined(node: ast.stmt) -> list[str]:
    """Return the names that a statement at the top of a file gives a value."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [alias.asname or alias.name for alias in node.names]
    targets = node.targets if isinstance(node, ast.Assign) else []
    if isinstance(node, ast.If | ast.Try | ast.With):
        return [x for inner in node.body for x in _defined(inner)]
    return [target.id for target in targets if isinstance(target, ast.Name)]
