"""Checked fields of a JSON object; each function raises RecordError with the name."""

import json
import sys
from collections.abc import Sequence
from typing import Any

from rlhf_jax.data.reading.json_lines import RecordError, kind_of


def text(record: dict, field: str, default: str | None = None) -> str:
    value = record.get(field, default)
    if value is None:
        raise RecordError("is missing or null.", field)
    if not isinstance(value, str):
        raise RecordError(f"must be text, not {kind_of(value)}.", field)
    return value


def text_or_number(record: dict, field: str) -> str:
    """Read a text, or a number as its text; "" if the field is missing or null."""
    value = record.get(field)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return json.dumps(value)
    return text(record, field, default="") if value is not None else ""


def choice(
    record: dict, field: str, choices: tuple[str, ...], default: str | None = None
) -> str:
    value = text(record, field, default)
    if value not in choices:
        raise RecordError(f"must be one of {choices}, not {value[:80]!r}.", field)
    return value


def optional_object(record: dict, field: str) -> dict[str, Any] | None:
    value = record.get(field)
    if value is not None and not isinstance(value, dict):
        raise RecordError(f"must be an object, not {kind_of(value)}.", field)
    return value


def boolean(record: dict, field: str, default: bool) -> bool:
    value = record.get(field)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise RecordError(f"must be true or false, not {kind_of(value)}.", field)
    return value


def token_ids(record: dict, field: str) -> list[int] | None:
    """Read a list of at least one token id, or None."""
    value = record.get(field)
    if value is None:
        return None
    if (
        not isinstance(value, list)
        or not value
        or not all(type(item) is int and item >= 0 for item in value)
    ):
        raise RecordError("must be a list of token ids, or null.", field)
    return value


def objects(record: dict, field: str) -> list[dict[str, Any]]:
    """Read a list of objects."""
    value = record.get(field)
    if not isinstance(value, list):
        raise RecordError(f"must be a list, not {kind_of(value)}.", field)
    for i, item in enumerate(value):
        if not isinstance(item, dict):
            problem = f"must be an object, not {kind_of(item)}."
            raise RecordError(problem, f"{field}[{i}]")
    return value


def texts(record: dict, field: str) -> list[str]:
    """Read a list of texts."""
    value = record.get(field)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise RecordError("must be a list of texts.", field)
    return value


def choices(
    record: dict, field: str, names: Sequence[str], allowed: tuple[str, ...]
) -> dict[str, str] | None:
    """Read an object that maps some of `names` to allowed texts, or None."""
    value = optional_object(record, field)
    for name, chosen in (value or {}).items():
        if name not in names or chosen not in allowed:
            raise RecordError(
                f"must give {', '.join(names)} one of {allowed}, not {name[:80]!r}: "
                f"{str(chosen)[:80]!r}.",
                field,
            )
    return value


def seconds(record: dict, field: str) -> float | None:
    value = record.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RecordError(f"must be a number, not {kind_of(value)}.", field)
    if not 0 <= value <= sys.float_info.max:
        raise RecordError(f"must be seconds, 0 or more, not {str(value)[:80]}.", field)
    return float(value)
