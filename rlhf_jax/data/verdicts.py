"""Verdicts of chat models, from text to numbers.

Judges are asked for JSON and write it in fences, between sentences, nested, with single
quotes or with numbers as text. `objects_in` reads JSON first, then a Python dict, then
by pattern whatever looks like "name": number between two braces.
"""

import ast
import json
import math
import re
import warnings
from collections.abc import Sequence
from typing import Any

from absl import logging

MAX_CHARACTERS = 2**16  # the end of a longer verdict is read
MAX_BROKEN = 50  # objects that are no JSON, in one verdict
MAX_DEPTH = 8  # objects inside each other whose numbers count
MAX_ENDS = 20  # closing braces tried for a Python dict
_DECODER = json.JSONDecoder(strict=False)  # line ends inside texts
_BEGIN = re.compile(r"\{\s*[\"'“]")
_BRACE = re.compile(r"[{}]")
_PAIR = re.compile(r"[\"'“]([^\"'“”]+)[\"'”]\s*[:：]\s*[\"'“]?(\d+(?:\.\d+)?)")
_NUMBER = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:/\s*\d+|分|points?)?\s*", re.IGNORECASE)


def objects_in(verdict: str) -> list[dict[str, Any]]:
    """The objects that stand in a verdict one after the other. Where the text ends
    inside an object, cut off, there are none: what stands before it need not be the
    verdict."""
    text, found, start, broken = verdict[-MAX_CHARACTERS:], [], 0, 0
    while (begin := _BEGIN.search(text, start)) and broken < MAX_BROKEN:
        try:
            value, start = _DECODER.raw_decode(text, begin.start())
        except (ValueError, RecursionError):
            broken += 1
            value, start = _python_dict(text, begin.start())
            if value is None:
                return []
        found.append(value)
    return found


def number(value: Any) -> float:
    """A mark as a number: 8, "8", "8/10", or the one number in {"score": 8, "why": ""};
    NaN for anything else."""
    if isinstance(value, dict):
        inside = [number(x) for x in value.values() if not isinstance(x, dict)]
        inside = [x for x in inside if not math.isnan(x)]
        return inside[0] if len(inside) == 1 else math.nan
    if isinstance(value, str):
        match = _NUMBER.fullmatch(value[:40])
        value = float(match[1]) if match else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    return float(value) if abs(value) < 1e9 else math.nan


def numbers(value: dict[str, Any], depth: int = MAX_DEPTH) -> dict[str, float]:
    """Every number of an object by its name; of a name that stands in several depths,
    the outermost."""
    found = {}
    for item in value.values():
        if isinstance(item, dict) and depth:
            found = numbers(item, depth - 1) | found
    for name, item in value.items():
        if not math.isnan(mark := number(item)):
            found[str(name).strip()] = mark
    return found


def tell_unread(verdicts: Sequence[str], read: Sequence[bool]) -> None:
    """Log how many verdicts say nothing that can be read, and what one of them says.
    Those that are "" had no answer, which the client has told."""
    lost = [v for v, ok in zip(verdicts, read, strict=True) if v and not ok]
    if lost:
        logging.warning(
            "%d of %d verdicts cannot be read and count as missing. One ends: %r. "
            "Raise max_tokens of the service if it is cut off, else ask another model.",
            len(lost), len(verdicts), lost[0][-200:],
        )  # fmt: skip


def _python_dict(text: str, start: int) -> tuple[dict | None, int]:
    """The object at a brace that begins no JSON, and its end; None: it has no end."""
    end = start
    for _ in range(MAX_ENDS):
        if (end := text.find("}", end) + 1) == 0:
            break
        try:
            with warnings.catch_warnings(action="ignore"):  # of odd escapes
                value = ast.literal_eval(text[start:end])
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, dict):
            return value, end
    depth = 0
    for brace in _BRACE.finditer(text, start):
        depth += 1 if brace[0] == "{" else -1
        if not depth:
            pairs = _PAIR.findall(text[start : brace.end()])
            return {name: float(mark) for name, mark in pairs}, brace.end()
    return None, len(text)
