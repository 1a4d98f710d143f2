"""Checks of a stage's options, before anything is read or compiled."""

import math


def one_of(config, name: str, known: tuple) -> None:
    """Raise ValueError unless `config[name]` is one of the known values."""
    if config[name] not in known:
        raise ValueError(f"{name}={config[name]!r} must be one of {known}.")


def multiple_of(config, name: str, *parts: str) -> None:
    """Raise ValueError unless `config[name]` is a multiple of all `parts` together."""
    if config[name] % math.prod(config[part] for part in parts):
        values = " * ".join(f"{part}={config[part]}" for part in parts)
        raise ValueError(f"{name}={config[name]} must be a multiple of {values}.")
