"""Reward 1 for a response that is JSON, and fits the schema of its prompt.

The schema (JSON Schema, json-schema.org) is the prompt's field `schema`. A response in
one fence of Markdown counts by what is inside.
"""

import json
import re
from typing import Any, NoReturn

import jsonschema
import referencing

from rlhf_jax.data.records import Prompt, Response
from rlhf_jax.rewards.rows import by_row

_FENCE = re.compile(r"\A```(?:json)?\s*\n(.*?)\n?\s*```\Z", re.DOTALL | re.IGNORECASE)
_NOTHING = object()


def _valid(prompt: Prompt, response: Response) -> float:
    schema = prompt.extra.get("schema", True)
    kind = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise ValueError(
            f"prompt {prompt.id!r} has a schema that is none: {error.message[:200]}"
        ) from None
    value = _parsed(response.text)
    if value is _NOTHING:
        return 0.0
    # An empty registry: a schema's links are never fetched.
    validator = kind(schema, registry=referencing.Registry())
    return float(validator.is_valid(value))


def _parsed(text: str) -> Any:
    text = text.strip()
    fence = _FENCE.match(text)
    try:
        return json.loads(fence[1] if fence else text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return _NOTHING


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


valid_json = by_row(_valid)
