"""Parsing of chat models' verdicts, from text to numbers.

Judges are asked for JSON, which they write in fences, between sentences, nested, with
single quotes or with numbers as text. `objects_in` tries JSON first, then a Python
dict, then a pattern for "name": number between two braces.
"""

import ast
import json
import math
import re
import warnings
from collections.abc import Sequence
from typing import Any

from absl import logging

MAX_CHARACTERS = 2**16  # characters read of a verdict, from its end
MAX_BROKEN = 50  # objects in a verdict that may be invalid JSON
MAX_DEPTH = 8  # levels of nested objects whose numbers count
MAX_ENDS = 20  # closing braces tried for a Python dict
_DECODER = json.JSONDecoder(strict=False)  # accepts line ends inside texts
_BEGIN = re.compile(r"\{\s*[\"'“]")
_BRACE = re.compile(r"[{}]")
_PAIR = re.compile(r"[\"'“]([^\"'“”]+)[\"'”]\s*[:：]\s*[\"'“]?(\d+(?:\.\d+)?)")
_UNIT = r"\s*(?:分|points?)?\s*"
_NUMBER = re.compile(
    rf"\s*(\d+(?:\.\d+)?){_UNIT}(?:(?:/|out of)\s*(\d+){_UNIT})?", re.IGNORECASE
)


def objects_in(verdict: str) -> list[dict[str, Any]]:
    """Return the objects in a verdict, in order. A text that is cut off inside an
    object gives an empty list: the earlier objects need not be the verdict."""
    text, objects, start, broken = verdict[-MAX_CHARACTERS:], [], 0, 0
    while (begin := _BEGIN.search(text, start)) and broken < MAX_BROKEN:
        try:
            value, start = _DECODER.raw_decode(text, begin.start())
        except (ValueError, RecursionError):
            broken += 1
            value, start = _python_dict(text, begin.start())
            if value is None:
                return []
        objects.append(value)
    return objects


def number(value: Any, highest: int) -> float:
    """Convert a mark to a number: 8, "8", "8/10" if 10 is the highest mark, or the only
    number in an object such as {"score": 8, "why": ""}; return NaN for anything else.
    """
    if isinstance(value, dict):
        inside = [number(x, highest) for x in value.values() if not isinstance(x, dict)]
        inside = [x for x in inside if not math.isnan(x)]
        return inside[0] if len(inside) == 1 else math.nan
    if isinstance(value, str):
        match = _NUMBER.fullmatch(value[:40])
        is_mark = match and int(match[2] or highest) == highest
        value = float(match[1]) if is_mark else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    return float(value) if abs(value) < 1e9 else math.nan


def numbers(
    value: dict[str, Any], highest: int, depth: int = MAX_DEPTH
) -> dict[str, float]:
    """Return all numbers of an object by name; for a name that occurs at several
    depths, the outermost number. `highest` is the highest mark."""
    marks = {}
    for item in value.values():
        if isinstance(item, dict) and depth:
            marks = numbers(item, highest, depth - 1) | marks
    for name, item in value.items():
        if not math.isnan(mark := number(item, highest)):
            marks[str(name).strip()] = mark
    return marks


def tell_unread(verdicts: Sequence[str], read: Sequence[bool]) -> None:
    """Log the number of unreadable verdicts, and the end of one. Empty verdicts mean
    that there was no answer, which the client has already logged."""
    lost = [v for v, ok in zip(verdicts, read, strict=True) if v and not ok]
    if lost:
        logging.warning(
            "%d of %d verdicts cannot be read and count as missing. One ends: %r. "
            "Raise max_tokens of the service if it is cut off, else ask another model.",
            len(lost), len(verdicts), lost[0][-200:],
        )  # fmt: skip


def _python_dict(text: str, start: int) -> tuple[dict | None, int]:
    """Parse an object that is not valid JSON at a brace; return the object and its end
    in the text, or None if the object has no end."""
    end = start
    for _ in range(MAX_ENDS):
        if (end := text.find("}", end) + 1) == 0:
            break
        try:
            with warnings.catch_warnings(action="ignore"):  # about odd escapes
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
