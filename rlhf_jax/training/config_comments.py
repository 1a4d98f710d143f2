"""The comments of the keys in configs/*.py: a description, and bounds.

A key's comment stands on its line, or on the lines right above it. An interval at the
end of the comment, "[0, 1)" or "(0, inf)", bounds the value.
"""

import ast
import functools
import importlib.util
import io
import math
import re
import tokenize
from pathlib import Path
from typing import NamedTuple

_INTERVAL = re.compile(r"\s*([\[(])([\w.*-]+), ([\w.*-]+)([\])])$")


class Interval(NamedTuple):
    """The allowed values of a number, which never include NaN."""

    low: float
    high: float
    has_low: bool  # the end itself is in
    has_high: bool

    def __contains__(self, x: float) -> bool:
        above = x >= self.low if self.has_low else x > self.low
        below = x <= self.high if self.has_high else x < self.high
        return above and below

    @property
    def words(self) -> str:
        """The interval in words, to follow "must be"."""
        if not math.isfinite(self.low):
            return "a number" if self.has_high else "finite"
        low = f"at least {self.low:g}" if self.has_low else f"above {self.low:g}"
        if math.isinf(self.high):
            return f"{low}, perhaps inf" if self.has_high else low
        if not self.has_low:
            return f"{low} and {self._at_most}"
        below = "" if self.has_high else "below "
        return f"from {self.low:g} to {below}{_number(self.high)}"

    def violated(self, x: float) -> str:
        """Return the bound that `x`, a number outside, violates, in words; the whole
        interval where it is short."""
        if self.high <= 1 or math.isinf(self.high):
            return self.words
        return self._at_most if x > self.low else f"at least {self.low:g}"

    @property
    def _at_most(self) -> str:
        return f"{'at most' if self.has_high else 'below'} {_number(self.high)}"


def split(comment: str) -> tuple[str, Interval | None]:
    """Split a comment into its text and the interval at its end."""
    match = _INTERVAL.search(comment)
    if not match:
        return comment, None
    left, low, high, right = match.groups()
    interval = Interval(_value(low), _value(high), left == "[", right == "]")
    return comment[: match.start()], interval


@functools.cache
def intervals() -> dict[str, Interval]:
    """Return the interval of every key, without dots, in the configs that can be
    imported; a key has the same interval in all of them."""
    spec = importlib.util.find_spec("configs")
    folders = [] if spec is None else spec.submodule_search_locations or []
    by_key = {}
    for path in (p for folder in folders for p in sorted(Path(folder).glob("*.py"))):
        for key, comment in comments(path).items():
            interval = split(comment)[1]
            if interval is not None:
                by_key[key.rpartition(".")[2]] = interval
    return by_key


def comments(path: Path, function: str = "") -> dict[str, str]:
    """Return the comment of every `c.KEY = ...` in a config file, in one function or in
    all."""
    source = path.read_text(encoding="utf-8")
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    notes = {  # line -> its comment, and whether it has nothing else
        token.start[0]: (token.string.strip("# "), token.line.lstrip()[0] == "#")
        for token in tokens
        if token.type == tokenize.COMMENT
    }
    by_key = {}
    functions = [
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and function in ("", node.name)
    ]
    for node in (n for f in functions for n in ast.walk(f)):
        if not isinstance(node, ast.Assign):
            continue
        key = re.fullmatch(r"c\.([\w.]+)", ast.unparse(node.targets[0]))
        if key:
            reason = [notes.get(node.end_lineno, ("", False))[0]]
            line = node.lineno - 1
            while notes.get(line, ("", False))[1]:
                reason.insert(0, notes[line][0])
                line -= 1
            by_key[key.group(1)] = " ".join(filter(None, reason))
    return by_key


def _value(text: str) -> float:
    base, _, exponent = text.partition("**")
    return float(base) ** int(exponent) if exponent else float(base)


def _number(x: float) -> str:
    return f"{x:,.0f}" if x > 1 else f"{x:g}"
